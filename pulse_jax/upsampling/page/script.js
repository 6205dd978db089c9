"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const dialog = document.querySelector("dialog");

for (const picture of all(".picture")) {
  const find = selector => picture.querySelector(selector);
  const [stage, slider] = [find(".stage"), find("input[type=range]")];
  const buttons = all(".restarts button:not(:disabled)", picture);
  // What can be shown: {name, file, src, lr}, the input first.
  const views = [find(".input"), ...buttons].map(item =>
    ({...item.dataset, src: (item.querySelector("img") || item).src}));

  const wipe = share => {
    slider.value = share;
    slider.parentNode.style.setProperty("--at", share + "%");
    stage.querySelector("span.left").hidden = share < 15;
    stage.querySelector("span.right").hidden = share > 85;
  };
  const show = (side, index) => {
    const view = views[index], image = stage.querySelector("img." + side);
    image.src = view.src;
    image.alt = view.name;
    image.classList.toggle("pixels", index == 0);
    stage.querySelector("span." + side).textContent = view.name;
    stage.querySelector("select." + side).value = index;
    if (side == "left") return;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i + 1 == index));
    const download = stage.querySelector(".download");
    download.href = view.src;
    download.download = picture.dataset.folder + "_" + view.file;
    for (const lr of all(".lr", picture)) {
      if (view.lr) lr.src = view.lr;
      lr.closest("figure").classList.toggle("hidden", !view.lr);
    }
  };

  for (const side of ["left", "right"]) {
    const select = find("select." + side);
    select.append(...views.map((view, index) => new Option(view.name, index)));
    select.addEventListener("change", () => {
      show(side, select.value);
      if (side == "left" && slider.value == 0) wipe(50);
    });
  }
  slider.addEventListener("input", () => wipe(slider.value));
  buttons.forEach((button, i) => button.addEventListener("click", () => show("right", i + 1)));
  show("left", 0);
  show("right", 1);  // the best
  wipe(0);

  const home = stage.parentNode, full = find(".fullview");
  full.addEventListener("click", () => {
    if (dialog.open) return dialog.close();
    dialog.className = picture.classList.contains("stretched") ? "stretched" : "";
    dialog.style.cssText = picture.style.cssText;
    dialog.append(stage);
    full.textContent = "Close";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      home.prepend(stage);
      full.textContent = "Full view";
    }, {once: true});
  });
  stage.querySelector(".stretch")?.addEventListener("change", event => {
    for (const root of [picture, dialog]) root.classList.toggle("stretched", event.target.checked);
  });
}

// A ZIP file of {name, bytes}, not compressed: images are already.
const table = Int32Array.from({length: 256}, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? n >>> 1 ^ 0xedb88320 : n >>> 1;
  return n;
});
const checksum = bytes => ~bytes.reduce((sum, byte) => table[(sum ^ byte) & 255] ^ sum >>> 8, -1);
function zip(files) {
  const little = (size, ...values) =>
    values.flatMap(value => Array.from({length: size}, (_, i) => value >>> 8 * i & 255));
  const parts = [], directory = [];
  let offset = 0;
  for (const {name, bytes} of files) {
    const title = new TextEncoder().encode(name);
    const common = [  // version, flags (names are UTF-8), method, time, date; sums and sizes
      ...little(2, 20, 0x800, 0, 0, 33), ...little(4, checksum(bytes), bytes.length, bytes.length),
      ...little(2, title.length, 0)];
    const head = [...little(4, 0x04034b50), ...common, ...title];
    parts.push(new Uint8Array(head), bytes);
    directory.push(...little(4, 0x02014b50), ...little(2, 20), ...common, ...little(2, 0, 0, 0),
      ...little(4, 0, offset), ...title);
    offset += head.length + bytes.length;
  }
  const end = [...little(4, 0x06054b50), ...little(2, 0, 0, files.length, files.length),
    ...little(4, directory.length, offset), ...little(2, 0)];
  return new Blob([...parts, new Uint8Array([...directory, ...end])], {type: "application/zip"});
}
const pack = pictures => Promise.all(pictures.flatMap(picture =>
  all(".input, .restarts button:not(:disabled)", picture).map(async item => ({
    name: picture.dataset.folder + "/" + item.dataset.file,
    bytes: new Uint8Array(await (await fetch((item.querySelector("img") || item).src)).arrayBuffer()),
  })))).then(zip);
// A page on disk may show the files beside it, but not read them.
const readable = location.protocol != "file:" || all(".input").every(image => image.src.startsWith("data:"));
for (const button of all(".pack")) {
  button.hidden = !readable;
  button.addEventListener("click", async () => {
    const picture = button.closest(".picture");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await pack(picture ? [picture] : all(".picture")));
    link.download = button.dataset.name + ".zip";
    link.click();
  });
}

const copy = document.querySelector(".copy");
copy.addEventListener("click", async () => {
  const code = copy.previousSibling;
  getSelection().selectAllChildren(code);
  await navigator.clipboard.writeText(code.textContent);
  copy.textContent = "Copied";
});

const body = document.querySelector("tbody");
for (const head of all("th")) {
  head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[head.cellIndex].dataset.value;
    const order = new Intl.Collator(undefined, {numeric: true}).compare;
    // Numbers before what is none, in both directions.
    const compare = (a, b) => {
      const [x, y] = [Number(value(a)), Number(value(b))];
      if (isNaN(x) && isNaN(y)) return up ? order(value(a), value(b)) : order(value(b), value(a));
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return up ? x - y : y - x;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
