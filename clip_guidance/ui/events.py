"""How the tabs run: a button that is busy meanwhile, and one line above the results for all that must be told.

A run replaces what the one before had to tell, an error fades after ``page.css``'s seconds, and whatever changes a
field takes the line away.
"""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
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
class StopButton:
    """A button that ends the run of its page at the next step.

    The run itself tells that it has ended, in order with all else that it shows. Where Gradio cancels a run, an update
    that is still on its way takes the place of what the button has told, and stays.

    Attributes:
        button: The button, which can be pressed during a run alone.
        running: What ends the run of a page, by the page's session: its latest run.
    """

    button: gr.Button
    running: dict[str | None, threading.Event] = field(default_factory=dict)

    @classmethod
    def make(cls, elem_id: str, **options: Any) -> StopButton:
        """Make the button."""
        made = cls(gr.Button("Stop", interactive=False, elem_id=elem_id, **options))
        made.button.click(None, None, made.button, js="() => 'Stopping…'", **QUICK)
        made.button.click(made.ask, **QUICK)
        return made

    def ask(self, page: gr.Request) -> None:
        """Ask the run of a page to end; a page without one is left alone."""
        if stopping := self.running.get(page.session_hash):
            stopping.set()

    @contextmanager
    def listening(self, page: gr.Request) -> Iterator[tuple[threading.Event]]:
        """Return what the button sets while the run of a page goes on."""
        stopping = self.running[page.session_hash] = threading.Event()
        try:
            yield (stopping,)
        finally:  # Gradio may begin the next run before it closes one that nobody watches any more
            if self.running.get(page.session_hash) is stopping:
                del self.running[page.session_hash]


@dataclass(frozen=True)
class RunButton:
    """A button that starts a run.

    Attributes:
        button: The button.
        label: What it says while nothing runs.
        busy: What it says during a run.
        stop: The button that ends the run early; None where none does.
    """

    button: gr.Button
    label: str
    busy: str
    stop: StopButton | None = None

    @classmethod
    def make(
        cls,
        label: str,
        busy: str,
        elem_id: str,
        variant: Any = "primary",
        stop_id: str | None = None,
        **options: Any,
    ) -> RunButton:
        """Make the button, whose form is the closest element of the class ``FORM``, and beside it one that stops it."""
        button = gr.Button(label, variant=variant, elem_id=elem_id, elem_classes="cg-run", **options)
        return cls(button, label, busy, StopButton.make(stop_id, **options) if stop_id else None)

    @property
    def buttons(self) -> list[gr.Button]:
        """All buttons that a run changes."""
        return [self.button] + ([self.stop.button] if self.stop else [])

    def waiting(self) -> list[gr.Button]:
        """Return the updates of the buttons before a run."""
        return [gr.Button(self.busy, interactive=False), gr.Button("Stop", interactive=True)][: len(self.buttons)]

    def ready(self) -> list[gr.Button]:
        """Return the updates of the buttons after a run."""
        return [gr.Button(self.label, interactive=True), gr.Button("Stop", interactive=False)][: len(self.buttons)]

    def listening(self, page: gr.Request) -> AbstractContextManager[tuple[threading.Event, ...]]:
        """Return what the work of a run gets beside its fields."""
        return self.stop.listening(page) if self.stop else nullcontext(())


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
) -> None:
    """Let a button start a run.

    Args:
        run: The button.
        notice: Where errors and notes are told.
        work: Called with the values of the fields and, where the run can be stopped, with what asks it to end. A
            ValueError or OSError is told in its own words; another error is logged, too, since it is a defect of this
            package or its models.
        fields: Components that the run reads; changing one that is seen clears the notice.
        outputs: Components that an update has values for.
        show_progress: As for ``gr.on``.
    """
    unchanged = [gr.skip()] * len(outputs)

    def steps(page: gr.Request, *values: Any) -> Iterator[list[Any]]:
        with run.listening(page) as stopping:
            yield [*run.waiting(), "", *unchanged]
            told: Any = gr.skip()
            try:
                for update in work(*values, *stopping):
                    yield [*(gr.skip() for _ in run.buttons), note_line(update.notes), *update.values]
            except (ValueError, OSError) as error:
                told = error_line(str(error))
            except Exception as error:
                logging.getLogger(__name__).exception("a run of the page failed")
                told = error_line(f"This failed for a reason that the terminal tells in full: {error}")
        yield [*run.ready(), told, *unchanged]

    run.button.click(None, None, run.button, js="() => 'Waiting…'", **QUICK)  # until the runs of other pages have ended
    run.button.click(
        steps,
        list(fields),
        [*run.buttons, notice, *outputs],
        show_progress=show_progress,
        show_progress_on=list(outputs) if show_progress != "hidden" else None,
        **COMPUTE,
    )
    changes = [field.change for field in fields if not isinstance(field, gr.State)]
    changes += [field.upload for field in fields if isinstance(field, gr.Gallery)]
    gr.on(changes, None, None, notice, js="() => ''", **QUICK)
