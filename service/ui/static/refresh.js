// Replaces the state by a fresh one every few seconds, while the page is in view.
const place = document.getElementById("refreshed");

function refresh() {
  if (document.hidden || place.contains(document.activeElement)) return;
  const request = new XMLHttpRequest();
  request.open("GET", location.href);
  // The browser parses it as a document without scripts.
  request.responseType = "document";
  request.addEventListener("load", () => {
    const fresh = request.status === 200 ? request.responseXML?.getElementById("refreshed") : null;
    if (fresh) place.replaceChildren(...fresh.childNodes);
  });
  request.send();
}
setInterval(refresh, Number(place.dataset.refreshS) * 1000);
