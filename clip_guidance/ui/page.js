// Enter in a field presses the button of its form; in a field of several lines Shift and Enter do. When a run starts
// on a narrow screen, where the results lie below the fields, they are brought into sight.
() => {
  document.addEventListener("keydown", (event) => {
    const field = event.target;
    if (event.key !== "Enter" || event.isComposing || !field.matches("input:not([role]), textarea")) return;
    const button = field.closest(".cg-form")?.querySelector(".cg-run");
    if (!button || (field.rows > 1) !== event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    field.blur(); // a slider takes a number over when its field is left
    setTimeout(() => button.click());
  }, true);
  document.addEventListener("click", (event) => {
    const result = event.target.closest?.(".cg-run")?.closest(".cg-tab")?.querySelector(".cg-result");
    if (result && result.getBoundingClientRect().top > innerHeight / 2) result.scrollIntoView({ behavior: "smooth" });
  });
}
