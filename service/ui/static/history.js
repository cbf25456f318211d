// Keys of the list: j and k walk through the results.
import { onKey } from "./common.js";

const links = [...document.querySelectorAll(".row-link")];
onKey((event, key) => {
  if (event.ctrlKey || !links.length || (key !== "j" && key !== "k")) return false;
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + (key === "j" ? 1 : -1)));
  links[next].focus();
  return true;
});
