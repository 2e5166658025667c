// Enter in a field presses the button of its form; in a field of several lines Shift and Enter do. When a run starts
// and its results lie out of sight, as below the fields on a narrow screen, they are brought into it.
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
    if (!result) return;
    const top = result.getBoundingClientRect().top;
    if (top < 0) scrollTo({ top: 0, behavior: "smooth" });
    else if (top > innerHeight / 2) result.scrollIntoView({ behavior: "smooth" });
  });
}
