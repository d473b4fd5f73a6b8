/**
 * Photos to search with: from a file, the camera, the clipboard or a drop; made small here, so that any phone's pass.
 * The address holds a photo's name, and this tab its content: back, forward and reload show the same, a sent link
 * does not.
 */

import { byId, el, icon } from "./dom.js";
import { memory } from "./state.js";

const SIDE = 1024; // pixels of the longer side, at most
const QUALITY = 0.85;
const KEPT = 12;

const photos = new Map(); // name -> data: URL
const [keptName, keptUrl] = (memory.get("photo") ?? "").split(" ");
if (keptUrl) photos.set(keptName, keptUrl);

/** The photo as a data: URL; undefined in a tab that does not have it. */
export const photoOf = (name) => photos.get(name);

/** The name of a picture file's photo. Rejects for what this browser cannot read as a picture. */
export async function takePhoto(file) {
  const url = await shrunk(file);
  const name = Date.now().toString(36);
  photos.set(name, url);
  if (photos.size > KEPT) photos.delete(photos.keys().next().value);
  memory.set("photo", `${name} ${url}`);
  return name;
}

async function shrunk(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // JPEG knows no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", QUALITY);
}

export function photoChip(name, onRemove) {
  return el(
    "button",
    {
      class: "chip photo-chip",
      type: "button",
      "aria-label": "Remove your photo",
      "data-testid": "photo-chip",
      "data-key": "photo",
      onclick: onRemove,
    },
    el("img", { src: photoOf(name), alt: "" }),
    el("span", {}, "Your photo"),
    icon("close"),
  );
}

/** Let the button, a paste and a drop choose a photo, while the button is shown. onPhoto(file). */
export function setUpPhotos(onPhoto) {
  const button = byId("photo-button");
  const chooser = byId("photo-file");
  const take = (event, files) => {
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    if (button.hidden || !picture) return;
    event.preventDefault();
    onPhoto(picture);
  };
  button.addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", (event) => {
    take(event, chooser.files);
    chooser.value = ""; // or choosing the same file again would be no change
  });
  document.addEventListener("paste", (event) => take(event, event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    if (!button.hidden && event.dataTransfer.types.includes("Files")) event.preventDefault(); // a drop is welcome
  });
  document.addEventListener("drop", (event) => take(event, event.dataTransfer.files));
}
