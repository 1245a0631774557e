"use strict";
// Shows, under the pointer, what a plot has in its nearest column. All texts come ready-made.
const tip = document.getElementById("tip");
function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}
for (const figure of document.querySelectorAll("figure.plot")) {
  const svg = figure.querySelector("svg");
  const cross = figure.querySelector(".cross");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const hide = () => {
    tip.hidden = true;
    cross.style.visibility = "hidden";
  };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * data.width;
    let nearest = 0;
    data.columns.forEach((column, index) => {
      if (Math.abs(column - x) < Math.abs(data.columns[nearest] - x)) nearest = index;
    });
    tip.replaceChildren(element("span", data.labels[nearest]));
    for (const row of data.rows) {
      const text = row.texts[nearest];
      if (text === null) continue;
      const line = element("div");
      line.className = row.class;
      const name = element("span");
      name.append(element("i"), row.name);
      line.append(name, element("b", text));
      tip.append(line);
    }
    cross.setAttribute("x1", data.columns[nearest]);
    cross.setAttribute("x2", data.columns[nearest]);
    cross.style.visibility = "visible";
    tip.hidden = false;
    const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 4)) + "px";
  });
}
