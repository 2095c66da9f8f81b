"use strict";
(() => {
  const root = document.getElementById("explorer");
  const list = root.querySelector(".sequences");
  const controls = root.querySelector(".explorer-controls");
  const detail = root.querySelector(".token-detail");
  const smallest = document.getElementById("explorer-min");
  const flipped = document.getElementById("explorer-flipped");
  const sort = document.getElementById("explorer-sort");
  const given = [...list.children];
  let current = 0;

  const filter = () => {
    let shown = 0;
    for (const token of list.querySelectorAll(".token")) {
      const keep = Math.abs(Number(token.dataset.l)) >= (Number(smallest.value) || 0)
        && (!flipped.checked || Number(token.dataset.f) > 0);
      token.classList.toggle("dim", !keep);
      shown += keep;
    }
    root.querySelector(".explorer-count").textContent = `${shown} tokens match`;
  };
  const show = (index) => {
    const all = [...list.children];
    current = (index + all.length) % all.length;
    all.forEach((item, place) => { item.open = place === current; });
    root.querySelector(".explorer-place").textContent = `sequence ${current + 1} of ${all.length}`;
    all[current].querySelector("summary").focus();
  };
  const order = () => {
    const key = sort.value;
    const sorted = key === "given" ? given
      : [...given].sort((a, b) => Math.abs(Number(b.dataset[key])) - Math.abs(Number(a.dataset[key])));
    list.append(...sorted);
    current = 0;
  };
  const say = (event) => {
    const token = event.target.closest(".token");
    if (token) detail.textContent = token.title;
  };
  const step = (way) => {
    const all = [...list.querySelectorAll("details[open] .token:not(.dim)")];
    if (!all.length) return;
    const here = all.indexOf(document.activeElement);
    all[here < 0 ? 0 : (here + way + all.length) % all.length].focus();
  };
  smallest.addEventListener("input", filter);
  flipped.addEventListener("change", filter);
  sort.addEventListener("change", order);
  document.getElementById("explorer-next").addEventListener("click", () => show(current + 1));
  document.getElementById("explorer-previous").addEventListener("click", () => show(current - 1));
  list.addEventListener("focusin", say);
  list.addEventListener("mouseover", say);
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const act = { j: () => show(current + 1), k: () => show(current - 1),
      ArrowRight: () => step(1), ArrowLeft: () => step(-1) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  for (const token of list.querySelectorAll(".token")) token.tabIndex = -1;
  controls.hidden = false;
  filter();
})();
