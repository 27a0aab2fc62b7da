// SPDX-License-Identifier: Apache-2.0
"use strict";
(() => {
  const root = document.documentElement;
  const report = (what) => { root.dataset.errors = (root.dataset.errors || "") + what + "\n"; };
  addEventListener("error", (e) => report(e.message || "a resource did not load"), true);
  addEventListener("unhandledrejection", (e) => report(String(e.reason)));
  addEventListener("securitypolicyviolation", (e) => report("refused: " + e.blockedURI));

  const get = (id) => document.getElementById(id);
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };

  // ---- The slider between photograph and map: its range input, or a drag on the picture.
  const wipeTo = (holder, share) => {
    const range = holder.querySelector(".wipe input");
    const value = Math.min(100, Math.max(0, Math.round(share)));
    range.value = value;
    const stage = holder.querySelector(".stage");
    stage.style.setProperty("--wipe", value);
    stage.classList.toggle("whole", value === 0 || value === 100); // then there is no divide
  };
  const dragged = (holder, event) => {
    const box = holder.querySelector(".stage").getBoundingClientRect();
    wipeTo(holder, (100 * (event.clientX - box.left)) / box.width);
  };
  const slides = (holder) =>
    holder.querySelector(".wipe") && (holder.id === "viewer" || root.dataset.view === "wipe");
  const bindWipe = (holder) => {
    holder.addEventListener("input", (e) => {
      if (e.target.matches(".wipe input")) wipeTo(holder, Number(e.target.value));
    });
    holder.addEventListener("pointerdown", (e) => {
      const stage = e.target.closest(".stage");
      if (!stage || e.button !== 0 || e.target.closest("button") || !slides(holder)) return;
      stage.setPointerCapture(e.pointerId);
      dragged(holder, e);
    });
    holder.addEventListener("pointermove", (e) => {
      const stage = e.target.closest(".stage");
      if (stage && stage.hasPointerCapture(e.pointerId)) dragged(holder, e);
    });
    holder.addEventListener("dragstart", (e) => e.preventDefault());
  };

  // ---- Gallery: view, layers, kinds.
  const cards = all(".card");
  cards.forEach(bindWipe);
  const setView = (view) => {
    root.dataset.view = view;
    all("input[name=view]").forEach((radio) => { radio.checked = radio.value === view; });
  };
  all("input[name=view]").forEach((radio) =>
    radio.addEventListener("change", () => setView(radio.value)));
  if (matchMedia("(max-width: 40rem)").matches) setView("wipe");
  const setLayer = (box) => root.classList.toggle("show-" + box.dataset.layer, box.checked);
  all("[data-layer]").forEach((box) => {
    setLayer(box); // a reloaded page may come back with other boxes ticked
    box.addEventListener("change", () => setLayer(box));
  });
  const kind = get("kind");
  const visible = () => cards.filter((card) => !card.hidden);
  const pictured = () => visible().filter((card) => card.querySelector(".enlarge"));
  if (kind) {
    const pick = () => {
      const [key, value] = kind.value.split("-");
      cards.forEach((card) => { card.hidden = Boolean(key) && card.dataset[key] !== value; });
      get("none-left").hidden = visible().length > 0;
    };
    kind.addEventListener("change", pick);
    pick();
  }

  // ---- One image, large.
  const viewer = get("viewer");
  const holder = get("viewer-stage");
  let current = null;
  const show = (card) => {
    current = card;
    const shown = pictured();
    const place = shown.indexOf(card);
    const stage = card.querySelector(".stage").cloneNode(true);
    const image = stage.querySelector("img");
    stage.querySelector(".enlarge").remove();
    if (image) stage.style.setProperty("--aspect", image.getAttribute("width") / image.getAttribute("height"));
    holder.replaceChildren(stage);
    viewer.querySelector(".wipe")?.remove();
    const wipe = card.querySelector(".wipe")?.cloneNode(true);
    if (wipe) {
      holder.after(wipe);
      wipeTo(viewer, 100);
    }
    get("viewer-name").textContent = card.querySelector("h3").textContent;
    get("viewer-place").textContent = `${place + 1} of ${shown.length}`;
    get("viewer-facts").replaceChildren(
      ...all(".facts, :scope > .note", card).map((part) => part.cloneNode(true)));
    get("viewer-previous").disabled = place === 0;
    get("viewer-next").disabled = place === shown.length - 1;
    get("viewer-switch").hidden = !wipe;
  };
  const photographOnly = (on) => {
    holder.classList.toggle("photograph", on);
    get("viewer-switch").setAttribute("aria-pressed", String(on));
  };
  const step = (by) => {
    const shown = pictured();
    const next = shown[shown.indexOf(current) + by];
    if (next) show(next);
  };
  const open = (card) => {
    photographOnly(false);
    show(card);
    viewer.showModal();
    (get("viewer-switch").hidden ? get("viewer-close") : get("viewer-switch")).focus();
  };
  bindWipe(viewer);
  cards.forEach((card) => {
    card.querySelector(".stage:not(.empty)")?.addEventListener("click", (e) => {
      if (e.target.closest(".enlarge") || !slides(card)) open(card);
    });
  });
  get("viewer-close").addEventListener("click", () => viewer.close());
  get("viewer-previous").addEventListener("click", () => step(-1));
  get("viewer-next").addEventListener("click", () => step(1));
  get("viewer-switch").addEventListener("click", () =>
    photographOnly(!holder.classList.contains("photograph")));
  viewer.addEventListener("close", () => current?.querySelector(".enlarge")?.focus());
  viewer.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (by && !e.target.matches("input")) {
      e.preventDefault();
      step(by);
    } else if (e.key === " " && !e.target.matches("button, summary")) {
      e.preventDefault();
      get("viewer-switch").click();
    }
  });

  // A link to a card that the gallery's filter hides shows all kinds again.
  addEventListener("hashchange", () => {
    const card = get(location.hash.slice(1));
    if (card?.matches(".card[hidden]")) {
      kind.value = "";
      kind.dispatchEvent(new Event("change"));
      card.scrollIntoView();
    }
  });
})();
