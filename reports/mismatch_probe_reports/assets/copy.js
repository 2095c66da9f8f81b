"use strict";
(() => {
  const said = document.querySelector(".copy-said");
  const select = (text) => {
    const range = document.createRange();
    range.selectNodeContents(text);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };
  for (const button of document.querySelectorAll("button.copy")) {
    const text = document.getElementById(button.dataset.of);
    button.hidden = false;
    button.addEventListener("click", async () => {
      let done = false;
      try {
        await navigator.clipboard.writeText(text.textContent);
        done = true;
      } catch {
        // Without leave to write there: select, and let the older command copy the selection.
        select(text);
        done = document.execCommand("copy");
      }
      said.textContent = done ? `${button.dataset.label} copied` : `${button.dataset.label} selected: press Ctrl+C`;
      button.textContent = done ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
