// Sliders through the cuts: each shows and hides what was drawn when the page was made.
(() => {
  const root = document.querySelector(".samples");
  if (!root) return;
  const steppers = [...root.querySelectorAll(".stepper")];
  const plan = root.querySelector("#samples-plan");

  // Shows one step of one stepper, and in its card what is dropped by then.
  function show(stepper, step) {
    const title = JSON.parse(stepper.dataset.titles)[step];
    const input = stepper.querySelector("input");
    input.value = step;
    input.setAttribute("aria-valuetext", title);
    stepper.querySelector("output").textContent = title;
    const card = stepper.closest(".sample");
    if (!card) return;
    const own = `[data-plan="${stepper.dataset.plan}"] `;
    for (const shade of card.querySelectorAll(own + "path"))
      shade.classList.toggle("off", Number(shade.dataset.step) > step);
    for (const caption of card.querySelectorAll(own + "[data-step]:not(path)"))
      caption.classList.toggle("off", Number(caption.dataset.step) !== step);
  }

  for (const stepper of steppers)
    stepper.addEventListener("input", (event) => {
      const step = Number(event.target.value);
      const all = !stepper.closest(".sample");
      for (const other of all ? steppers : [stepper])
        if (other.dataset.plan === stepper.dataset.plan) show(other, step);
    });

  // Shows what belongs to the chosen plan.
  function choose() {
    const chosen = plan ? plan.value : "0";
    for (const part of root.querySelectorAll("[data-plan]"))
      part.classList.toggle("off", part.dataset.plan !== chosen);
  }

  if (plan) plan.addEventListener("change", choose);
  for (const stepper of steppers) show(stepper, Number(stepper.querySelector("input").max));
  choose();
  root.classList.add("live");
})();
