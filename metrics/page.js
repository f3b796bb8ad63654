// Pictures are enlarged in a dialog; Escape closes it, arrow keys show the next one, a click toggles full size.
const links = [...document.querySelectorAll("a.picture")];
const viewer = document.getElementById("viewer");
const stage = viewer.querySelector(".stage");
let shown = 0;

function show(index) {
  shown = (index + links.length) % links.length;
  const picture = links[shown].querySelector("img");
  const enlarged = stage.querySelector("img");
  enlarged.src = picture.src;
  enlarged.alt = picture.alt;
  enlarged.className = picture.className;
  const everyPixel = picture.naturalWidth / devicePixelRatio;
  enlarged.style.setProperty("--full", `${Math.max(everyPixel, 2 * picture.clientWidth)}px`);
  document.getElementById("caption").textContent = `${picture.alt} (${shown + 1} of ${links.length})`;
  stage.classList.toggle("full", innerWidth < 700); // on a phone, the page shows it as wide as the screen already
  stage.scrollTo(0, 0);
  if (!viewer.open) viewer.showModal();
}

links.forEach((link, index) => link.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the file itself, in a new tab
  event.preventDefault();
  show(index);
}));
viewer.addEventListener("click", (event) => {
  if (event.target.closest("[data-step]")) show(shown + Number(event.target.closest("[data-step]").dataset.step));
  else if (event.target.closest("[data-close]") || event.target === stage) viewer.close();
  else if (event.target.tagName === "IMG") stage.classList.toggle("full");
});
viewer.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && !stage.classList.contains("full")) { // at full size the arrow keys scroll
    event.preventDefault();
    show(shown + step);
  }
});
viewer.addEventListener("close", () => links[shown].scrollIntoView({ block: "nearest" }));
