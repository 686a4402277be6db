// Keeps what is shown up to date, and adds the reader's own time. The page works without it.
"use strict";

(() => {
  const EVERY_MS = 5000;
  const PATIENCE_MS = 10000;
  const SELECTED_MS = 60000;
  const hasParts = () => document.querySelector("[data-part]") !== null;
  const unreachable = document.getElementById("unreachable");
  let lastAnswerAt = new Date();
  let isPressed = false;
  let isWanted = true;
  let timer = 0;

  // ── times ──────────────────────────────────────────────────────────────────────────────────────────

  const two = (number) => String(number).padStart(2, "0");
  const clock = (at) => `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const utc = (at) => `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())} UTC`;

  function own(at) {
    const isSameDay = at.getDate() === at.getUTCDate();
    const day = isSameDay ? "" : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
    return `${day}${clock(at)} here`;
  }

  function addOwnTimes(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (at.getTimezoneOffset() === 0 || Number.isNaN(at.getTime())) continue;
      const more = document.createElement("span");
      more.className = "own";
      more.textContent = `(${own(at)})`;
      time.after(" ", more);
    }
  }

  // ── parts ──────────────────────────────────────────────────────────────────────────────────────────

  function isInUse(part) {
    const selection = document.getSelection();
    const isSelected = selection && !selection.isCollapsed && selection.containsNode(part, true);
    part.selectedAt = isSelected ? part.selectedAt || Date.now() : 0;
    const isHeld = isSelected && Date.now() - part.selectedAt < SELECTED_MS; // then it is too old to be left
    const field = document.activeElement;
    return isHeld || (part.contains(field) && field.matches("input, select, textarea"));
  }

  // Which element it is among those of its kind: the new part has it in the same place, as a rule.
  function placeOf(part, element) {
    const name = element.getAttribute("aria-label") || element.textContent;
    return { tag: element.tagName, name, index: [...part.querySelectorAll(element.tagName)].indexOf(element) };
  }

  function elementAt(part, place) {
    const all = [...part.querySelectorAll(place.tag)];
    const named = all.filter((each) => (each.getAttribute("aria-label") || each.textContent) === place.name);
    return named.length === 1 ? named[0] : all[place.index];
  }

  function swap(part, fresh) {
    const focused = part.contains(document.activeElement) ? placeOf(part, document.activeElement) : null;
    const open = [...part.querySelectorAll("details[open]")].map((each) => each.id);
    const scrolled = [...part.querySelectorAll(".wide")].map((each) => [each.scrollLeft, each.scrollTop]);
    addOwnTimes(fresh);
    part.replaceWith(fresh);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    [...fresh.querySelectorAll(".wide")].forEach((each, index) => each.scrollTo(...(scrolled[index] || [0, 0])));
    if (focused) elementAt(fresh, focused)?.focus({ preventScroll: true });
  }

  function take(found) {
    for (const part of document.querySelectorAll("[data-part]")) {
      const fresh = found.getElementById(part.id);
      if (fresh && !isInUse(part)) {
        if (fresh.dataset.spoken !== part.dataset.spoken) say(fresh.textContent.replace(/\s+/g, " ").trim());
        swap(part, document.importNode(fresh, true));
      }
    }
    document.title = found.title;
  }

  function say(text) {
    document.getElementById("spoken").textContent = text.slice(0, 300);
  }

  // ── asking ─────────────────────────────────────────────────────────────────────────────────────────

  async function ask() {
    const stop = new AbortController();
    const bound = setTimeout(() => stop.abort(), PATIENCE_MS);
    try {
      const answer = await fetch(location.href, { signal: stop.signal, cache: "no-store" });
      const found = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (found.querySelector("[data-part]")) {
        lastAnswerAt = new Date();
        unreachable.hidden = true;
        if (!isPressed) take(found);
      } else if (answer.redirected) {
        tell("Your session is over. Load the page again to sign in.");
      } else {
        const why = found.getElementById("trouble");
        tell(why ? why.textContent.replace(/\s+/g, " ").trim() : `The service answered ${answer.status}.`);
      }
    } catch {
      tell("The service cannot be reached.");
    } finally {
      clearTimeout(bound);
    }
  }

  function tell(why) {
    const since = `What you see is of ${utc(lastAnswerAt)} (${own(lastAnswerAt)}). Trying again every ${EVERY_MS / 1000} s.`;
    const text = `${why} ${since}`;
    if (unreachable.textContent !== text) unreachable.textContent = text;
    unreachable.hidden = false;
  }

  async function round() {
    clearTimeout(timer);
    if (!isWanted || document.hidden) return;
    await ask();
    clearTimeout(timer);
    timer = setTimeout(round, EVERY_MS);
  }

  function offerToStop() {
    const label = document.createElement("label");
    label.className = "sure";
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      isWanted = box.checked;
      round();
    });
    label.append(box, `Update every ${EVERY_MS / 1000} s`);
    document.getElementById("updates").append(label);
  }

  addOwnTimes(document);
  if (hasParts()) {
    offerToStop();
    // between the press of a button and its release, it must stay the same button
    document.addEventListener("pointerdown", (event) => { isPressed = event.button === 0; });
    for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => { isPressed = false; });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) round(); });
    timer = setTimeout(round, EVERY_MS);
  }
})();
