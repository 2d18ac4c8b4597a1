"use strict";
// What the page adds to its static text: a theme, copying, sorting, and charts drawn when they are first seen.

const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themes = ["auto", "light", "dark"];
let library = null; // plotly, once it is unpacked
let content = null; // figures, themes and plotly's settings

root.classList.add("js");
useTheme(remembered());
document.addEventListener("DOMContentLoaded", () => {
  prepareTheme();
  prepareCopying();
  prepareTable();
  prepareCharts();
  openTarget();
  addEventListener("hashchange", openTarget);
});

function remembered() {
  try {
    return localStorage.getItem("gradscope-theme") || "auto";
  } catch {
    return "auto"; // storage may be closed to pages opened from a disk
  }
}

function useTheme(choice) {
  if (choice === "auto") delete root.dataset.theme;
  else root.dataset.theme = choice;
}

function currentTheme() {
  return root.dataset.theme || (systemDark.matches ? "dark" : "light");
}

function prepareTheme() {
  const button = document.getElementById("theme");
  const label = () => {
    const choice = root.dataset.theme || "auto";
    button.textContent = `◐ ${choice[0].toUpperCase()}${choice.slice(1)}`;
    button.setAttribute("aria-label", `Colours: ${choice === "auto" ? "as the system has them" : choice}`);
  };
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    useTheme(next);
    label();
    try {
      localStorage.setItem("gradscope-theme", next);
    } catch {
      // the choice then holds for this visit
    }
    drawnCharts().forEach((plot) => draw(plot));
  });
  systemDark.addEventListener("change", () => drawnCharts().forEach((plot) => draw(plot)));
  label();
}

function prepareCopying() {
  document.querySelectorAll(".copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      const done = await copied(code);
      button.textContent = done ? "Copied" : "Press Ctrl+C";
      document.getElementById("spoken").textContent = done ? "Code copied" : "Code selected";
      setTimeout(() => (button.textContent = "Copy"), 1800);
    });
  });
}

async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

function prepareTable() {
  const table = document.getElementById("layer-table");
  if (!table) return;
  const headings = [...table.querySelectorAll("thead th[scope=col]")];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sortTable(table, headings, column));
  });
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

function sortTable(table, headings, column) {
  const ascending = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const numeric = headings[column].classList.contains("number");
  const keyed = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[column], numeric), row]);
  keyed.sort(([a], [b]) => compare(a, b, ascending ? 1 : -1));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function sortKey(cell, numeric) {
  if (!numeric) return cell.textContent.trim() || null;
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value.replace("inf", "Infinity"));
}

function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last either way
  if (typeof a === "string") return direction * a.localeCompare(b, undefined, { numeric: true });
  return a === b ? 0 : direction * (a < b ? -1 : 1);
}

function openTarget() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
}

function prepareCharts() {
  const plots = [...document.querySelectorAll(".plot")];
  if (!plots.length) return;
  const ready = load().catch((error) => {
    const message = document.getElementById("charts-failed");
    message.textContent = `The charts could not be unpacked; a browser of 2023 or newer can. (${error.message})`;
    message.hidden = false;
  });
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((item) => item.isIntersecting)) {
        seen.unobserve(entry.target);
        ready.then(() => library && draw(entry.target));
      }
    },
    { rootMargin: "400px" },
  );
  plots.forEach((plot) => seen.observe(plot));
  addEventListener("beforeprint", () => prepareForPrint(plots));
  addEventListener("afterprint", () => drawnCharts().forEach((plot) => draw(plot)));
}

async function load() {
  // The page is readable first: unpacking 5 MB of library waits for a quiet moment.
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  content = JSON.parse(await unpacked("payload"));
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  library = window.Plotly;
}

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) packed[place] = text.charCodeAt(place);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function drawnCharts() {
  return [...document.querySelectorAll(".plot.drawn")];
}

function draw(plot, theme = currentTheme(), width = undefined) {
  const figure = content.figures[plot.dataset.figure];
  const layout = { ...figure.layout, template: content.themes[theme], width, autosize: width === undefined };
  plot.style.minHeight = `${figure.layout.height}px`;
  plot.classList.add("drawn");
  return library.react(plot, figure.data, layout, content.config);
}

function prepareForPrint(plots) {
  document.querySelectorAll("details").forEach((part) => (part.open = true));
  if (library) plots.forEach((plot) => draw(plot, "light", 660));
}
