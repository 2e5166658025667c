"""How the tabs run: a button that is busy meanwhile, and one line above the results for all that must be told.

A run replaces what the one before had to tell, an error fades after ``page.css``'s seconds, and whatever changes a
field takes the line away.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

#: Options of every event that computes. Only one runs at a time, because the models are shared; no event is an API.
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1, "api_visibility": "private"}
#: Options of every event that only changes the page.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
FORM = "cg-form"  # class of what holds the fields of a run; page.js presses its button when Enter is typed in one
RESULT = "cg-result"  # class of what holds the results, which page.js brings into sight


@dataclass(frozen=True)
class Update:
    """What a run shows next.

    Attributes:
        values: One value for each output.
        notes: What is to be told beside them, as text; the latest update has all of it.
    """

    values: Sequence[Any]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class RunButton:
    """A button that starts a run.

    Attributes:
        button: The button.
        label: What it says while nothing runs.
        busy: What it says during a run.
    """

    button: gr.Button
    label: str
    busy: str

    @classmethod
    def make(cls, label: str, busy: str, elem_id: str, variant: Any = "primary", **options: Any) -> RunButton:
        """Make the button; its form is the closest element of the class ``FORM``."""
        return cls(gr.Button(label, variant=variant, elem_id=elem_id, elem_classes="cg-run", **options), label, busy)

    def ready(self) -> gr.Button:
        """Return the update after a run."""
        return gr.Button(self.label, interactive=True)

    def waiting(self) -> gr.Button:
        """Return the update before a run."""
        return gr.Button(self.busy, interactive=False)


def notice_line(elem_id: str) -> gr.HTML:
    """Lay out the line that tells errors and notes."""
    return gr.HTML(elem_id=elem_id, elem_classes="cg-notice-line")


def error_line(message: str) -> str:
    """Return the HTML of an error, which is text."""
    return f'<div class="cg-notice cg-error" role="alert">{html.escape(message)}</div>'


def note_line(notes: Iterable[str]) -> str:
    """Return the HTML of notes, each of them once."""
    return "".join(f'<div class="cg-notice" role="status">{html.escape(note)}</div>' for note in dict.fromkeys(notes))


def on_run(
    run: RunButton,
    notice: gr.HTML,
    work: Callable[..., Iterator[Update]],
    fields: Sequence[Any],
    outputs: Sequence[Any],
    show_progress: Any = "full",
) -> Any:
    """Let a button start a run.

    Args:
        run: The button.
        notice: Where errors and notes are told.
        work: Called with the values of the fields. A ValueError or OSError is told in its own words; another error is
            logged, too, since it is a defect of this package or its models.
        fields: Components that the run reads; changing one that is seen clears the notice.
        outputs: Components that an update has values for.
        show_progress: As for ``gr.on``.

    Returns:
        The event, which can be cancelled.
    """
    unchanged = [gr.skip()] * len(outputs)

    def steps(*values: Any) -> Iterator[list[Any]]:
        yield [run.waiting(), "", *unchanged]
        told: Any = gr.skip()
        try:
            for update in work(*values):
                yield [gr.skip(), note_line(update.notes), *update.values]
        except (ValueError, OSError) as error:
            told = error_line(str(error))
        except Exception as error:
            logging.getLogger(__name__).exception("a run of the page failed")
            told = error_line(f"This failed for a reason that the terminal tells in full: {error}")
        yield [run.ready(), told, *unchanged]

    started = run.button.click(
        steps,
        list(fields),
        [run.button, notice, *outputs],
        show_progress=show_progress,
        show_progress_on=list(outputs) if show_progress != "hidden" else None,
        **COMPUTE,
    )
    changes = [field.change for field in fields if not isinstance(field, gr.State)]
    changes += [field.upload for field in fields if isinstance(field, gr.Gallery)]
    gr.on(changes, None, None, notice, js="() => ''", **QUICK)
    return started
