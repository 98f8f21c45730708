// Keeps the regions of a page as the service sends them, and says how long ago each moment was.
"use strict";
(() => {
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  const hold = document.getElementById("hold");
  const AGAIN_MS = 15000; // after a refusal, which a browser does not try again by itself
  const SILENT_MS = 12000;
  let ahead = Number(main.dataset.now) * 1000 - Date.now(); // of the service's clock
  let heard = Date.now();
  let source = null;
  let held = false;
  let said = "";

  const clock = () => new Date(Date.now() + ahead).toISOString().slice(11, 19);

  function say(text, lost) {
    if (text === said) return; // a screen reader reads every change
    said = text;
    live.textContent = text;
    live.parentElement.classList.toggle("lost", lost);
  }

  function span(ms) {
    const seconds = Math.abs(ms) / 1000;
    for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
    }
    return `${Math.floor(seconds)} s`;
  }

  function ages() {
    const now = Date.now() + ahead;
    for (const time of main.querySelectorAll("time")) {
      const left = Date.parse(time.dateTime) - now;
      let ago = time.nextElementSibling;
      if (!ago || ago.className !== "ago") {
        ago = document.createElement("span");
        ago.className = "ago";
        time.after(ago);
      }
      ago.textContent = left > 0 ? ` in ${span(left)}` : ` ${span(left)} ago`;
    }
  }

  function show({ id, digest, html }) {
    const region = document.getElementById(id);
    if (!region || region.dataset.digest === digest) return;
    const selection = document.getSelection();
    if (!selection.isCollapsed && region.contains(selection.anchorNode)) return; // somebody copies
    const open = [...region.querySelectorAll("details[open]")].map((each) => each.id);
    const focused = region.contains(document.activeElement) ? document.activeElement : null;
    const link = focused && focused.getAttribute("href");
    region.innerHTML = html;
    region.dataset.digest = digest;
    region.classList.remove("new");
    void region.offsetWidth; // so that the animation begins anew
    region.classList.add("new");
    for (const name of open) {
      const details = document.getElementById(name);
      if (details) details.open = true;
    }
    if (link) region.querySelector(`[href="${CSS.escape(link)}"]`)?.focus();
    else if (focused?.tagName === "SUMMARY") region.querySelector("summary")?.focus();
    ages();
  }

  function connect() {
    source = new EventSource(main.dataset.stream);
    source.addEventListener("region", (event) => show(JSON.parse(event.data)));
    source.addEventListener("now", (event) => {
      heard = Date.now();
      ahead = JSON.parse(event.data).at * 1000 - heard;
      say("Live", false);
      main.dataset.live = "yes";
    });
    source.addEventListener("trouble", (event) => {
      heard = Date.now();
      say(`${JSON.parse(event.data).said} The figures are of before.`, true);
    });
    source.onerror = () => {
      if (held) return;
      say("Not connected; trying again. The figures are of before.", true);
      if (source.readyState === EventSource.CLOSED) setTimeout(() => held || connect(), AGAIN_MS);
    };
  }

  hold.hidden = false;
  hold.addEventListener("click", () => {
    held = !held;
    hold.setAttribute("aria-pressed", String(held));
    if (held) {
      source.close();
      say(`Held at ${clock()} UTC`, false);
    } else connect();
  });
  // A browser has six connections to an address, over all its tabs.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else if (!held && source.readyState === EventSource.CLOSED) connect();
  });
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => event.persisted && !held && connect());
  setInterval(() => {
    ages();
    if (!held && Date.now() - heard > SILENT_MS) say(`No figures since ${new Date(heard + ahead).toISOString().slice(11, 19)} UTC.`, true);
  }, 1000);
  ages();
  connect();
})();
