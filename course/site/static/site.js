// Widgets move without a kernel: each position of the controls has its own picture.
document.addEventListener("DOMContentLoaded", () => {
  for (const widget of document.querySelectorAll(".moves")) {
    const controls = [...widget.querySelectorAll("[data-name]")];
    const image = widget.querySelector("img");
    const show = () => {
      const at = controls.map((control) => Number(control.value));
      controls.forEach((control, i) => {
        const output = control.parentElement.querySelector("output");
        const words = JSON.parse(control.dataset.words);
        if (output) output.textContent = words[at[i]];
        control.setAttribute("aria-valuetext", words[at[i]]);
      });
      image.src = widget.dataset.folder + at.join("-") + ".webp";
    };
    controls.forEach((control) => control.addEventListener("input", show));
  }
});

// What the theme leaves out: a name for the arrow that unfolds pages, and a way by keyboard to wide
// tables and to the map, which scroll.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll("details > summary")) {
    if (arrow.textContent.trim()) continue;
    const link = arrow.closest("li")?.querySelector("a");
    arrow.setAttribute("aria-label", `Show the pages of ${link ? link.textContent.trim() : "this part"}`);
  }
  const wide = document.querySelectorAll('.bd-content table, p:has(> img[src$="map.svg"])');
  for (const element of wide) element.tabIndex = 0;
});
