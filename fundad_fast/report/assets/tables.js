// SPDX-License-Identifier: Apache-2.0
"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const make = (tag, text) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const data = JSON.parse(get("data").textContent);
  if (!get("rows-body") || !data.id) return;
  const PAGE = 50;
  const words = (count) => count.toLocaleString("en");
  const scoreText = (value) =>
    value === null ? "–" : Math.abs(value) >= 1e4 ? words(Math.round(value)) : value.toPrecision(4);
  const pctText = (value) => (value === null ? "–" : value.toFixed(1));

  // Rows come as columns of JSON; only one page of them is in the document.
  // table: its name in ids; count; columns: key -> value of row i; cells: what row i shows, as
  // [content, class]; choices: [name, fits(i)]; finds(i, wanted); more(i): further conditions.
  const paged = ({ table, count, columns, falls, cells, choices, finds, more }) => {
    const part = (name) => get(`${table}-${name}`);
    const pick = part("pick");
    choices.forEach(([name], k) => pick.append(new Option(name, k)));
    let order = [];
    let sorted = { by: "rank", falling: false };
    let page = 0;
    const draw = () => {
      const pages = Math.max(1, Math.ceil(order.length / PAGE));
      part("body").replaceChildren(...order.slice(page * PAGE, (page + 1) * PAGE).map((i) => {
        const row = make("tr");
        for (const [content, name] of cells(i)) {
          const cell = make("td");
          cell.append(content);
          if (name) cell.className = name;
          row.append(cell);
        }
        return row;
      }));
      part("page").textContent = `page ${words(page + 1)} of ${words(pages)}`;
      part("count").textContent = `${words(order.length)} of ${words(count)}`;
      part("first").disabled = part("back").disabled = page === 0;
      part("last").disabled = part("on").disabled = page === pages - 1;
    };
    const arrange = () => {
      const wanted = part("find").value.toLowerCase();
      const fits = choices[pick.value || 0][1];
      const found = [];
      for (let i = 0; i < count; i++) {
        if (fits(i) && more(i) && (!wanted || finds(i, wanted))) found.push(i);
      }
      const keys = found.map(columns[sorted.by]);
      const sign = sorted.falling ? -1 : 1;
      const places = found.map((_, k) => k);
      places.sort((a, b) => {
        const [x, y] = [keys[a], keys[b]];
        if (x === y) return a - b;
        if (x === null) return 1; // unknown comes last either way
        if (y === null) return -1;
        return (x < y ? -1 : 1) * sign;
      });
      order = places.map((k) => found[k]);
      page = 0;
      draw();
    };
    const turn = (to) => { page = to; draw(); };
    part("first").addEventListener("click", () => turn(0));
    part("back").addEventListener("click", () => turn(page - 1));
    part("on").addEventListener("click", () => turn(page + 1));
    part("last").addEventListener("click", () => turn(Math.max(0, Math.ceil(order.length / PAGE) - 1)));
    let waiting = 0;
    part("find").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(arrange, 120);
    });
    pick.addEventListener("change", arrange);
    all(`#${table}-table [data-sort]`).forEach((button) =>
      button.addEventListener("click", () => {
        const by = button.dataset.sort;
        // Numbers are looked at from the top first, names from A.
        const falling = sorted.by === by ? !sorted.falling : falls.includes(by);
        sorted = { by, falling };
        all(`#${table}-table th`).forEach((th) => th.removeAttribute("aria-sort"));
        button.parentElement.setAttribute("aria-sort", falling ? "descending" : "ascending");
        arrange();
      }));
    arrange();
    return arrange;
  };

  // ---- All images.
  const count = data.id.length;
  const lower = data.id.map((id) => id.toLowerCase());
  const patients = data.patients;
  const patientLower = patients ? patients.name.map((name) => name.toLowerCase()) : [];
  const patientOf = (i) => (patients && data.patient[i] >= 0 ? data.patient[i] : -1);
  const imageLink = (i) => {
    if (i >= data.shown) return data.id[i];
    const link = make("a", data.id[i]);
    link.href = `${data.pages[Math.floor(i / data.page_size)]}#image-${i + 1}`;
    return link;
  };
  const labelOf = (i) => {
    const truth = ["", "healthy", "abnormal"][data.label[i] + 1];
    const group = data.class[i] < 0 ? "" : data.classes[data.class[i]];
    return truth && group ? `${truth} (${group})` : truth || group;
  };
  const kinds = [["all", () => true]];
  if (data.flag.some((flag) => flag >= 0)) {
    kinds.push(["flagged", (i) => data.flag[i] === 1], ["not flagged", (i) => data.flag[i] === 0]);
  }
  if (data.label.some((label) => label >= 0)) {
    kinds.push(["missed", (i) => data.flag[i] === 0 && data.label[i] === 1]);
    kinds.push(["false alarms", (i) => data.flag[i] === 1 && data.label[i] === 0]);
  }
  data.statuses.forEach((name, k) => kinds.push(["status: " + name, (i) => data.status[i] === k]));

  let only = -1; // one patient
  const chosen = data.divisions.map(() => -1);
  const has = (key) => Boolean(document.querySelector(`#rows-table [data-sort=${key}]`));
  const [withPatient, withSide] = [has("patient"), has("side")];
  const patientLink = (p) => {
    if (p < 0) return "–";
    const link = make("a", patients.name[p]);
    link.href = "#rows";
    link.addEventListener("click", () => showOnly(p));
    return link;
  };
  const sideOf = (i) => (data.laterality[i] < 0 ? null : data.sides[data.laterality[i]]);
  const arrangeRows = paged({
    table: "rows",
    count,
    columns: {
      rank: (i) => i, id: (i) => lower[i], score: (i) => data.score[i], pct: (i) => data.pct[i],
      flag: (i) => (data.flag[i] < 0 ? null : data.flag[i]), label: labelOf, side: sideOf,
      patient: (i) => (patientOf(i) < 0 ? null : patientLower[patientOf(i)]),
      status: (i) => data.statuses[data.status[i]],
    },
    falls: ["score", "pct", "flag"],
    cells: (i) => [
      [i < data.ranked ? words(i + 1) : "–", "num"],
      [imageLink(i), "name"],
      ...(withPatient ? [[patientLink(patientOf(i)), "name short"]] : []),
      ...(withSide ? [[sideOf(i) || "–", ""]] : []),
      [i < data.ranked ? scoreText(data.score[i]) : "–", "num"],
      [pctText(data.pct[i]), "num"],
      [["–", "not flagged", "flagged"][data.flag[i] + 1], data.flag[i] > 0 ? "flag" : ""],
      [labelOf(i) || "–", ""],
      [data.statuses[data.status[i]], ""],
    ],
    choices: kinds,
    finds: (i, wanted) =>
      lower[i].includes(wanted) || (patientOf(i) >= 0 && patientLower[patientOf(i)].includes(wanted)),
    more: (i) =>
      (only < 0 || patientOf(i) === only) &&
      chosen.every((code, k) => code < 0 || data.divisions[k].code[i] === code),
  });
  data.divisions.forEach((division, k) => {
    const label = make("label", division.word[0].toUpperCase() + division.word.slice(1) + " ");
    label.className = "pick";
    const select = make("select");
    select.append(new Option("all", -1));
    division.names.forEach((name, code) => select.append(new Option(name, code)));
    select.addEventListener("change", () => {
      chosen[k] = Number(select.value);
      arrangeRows();
    });
    label.append(select);
    get("rows-divisions").append(label);
  });
  const showOnly = (p) => {
    only = p;
    const button = get("rows-only");
    button.hidden = p < 0;
    button.textContent = p < 0 ? "" : `Patient ${patients.name[p]} ✕`;
    if (p >= 0) { // nothing else hides images of the patient
      get("rows-find").value = "";
      get("rows-pick").value = 0;
      chosen.fill(-1);
      all("#rows-divisions select").forEach((select) => { select.value = -1; });
    }
    arrangeRows();
  };
  get("rows-only").addEventListener("click", () => showOnly(-1));

  // ---- Patients.
  if (!patients) return;
  const eyes = ["R", "L"].filter((side) => patients.sides[side]);
  const scored = (p) => patients.scored[p] > 0;
  const worst = (p) => patients.worst[p];
  const worstScore = (p) => (worst(p) < 0 || !scored(p) ? null : data.score[worst(p)]);
  const worstPct = (p) => (worst(p) < 0 || !scored(p) ? null : data.pct[worst(p)]);
  const lost = (p) => patients.images[p] - patients.scored[p];
  const groups = [["all", () => true]];
  if (data.flag.some((flag) => flag >= 0)) {
    groups.push(["flagged", (p) => patients.flagged[p] > 0]);
    groups.push(["not flagged", (p) => scored(p) && !patients.flagged[p]]);
  }
  if (eyes.length === 2) {
    const known = (p) => eyes.filter((side) => patients.sides[side][p] !== null).length;
    groups.push(["only one eye scored", (p) => known(p) === 1]);
  }
  groups.push(["some images not scored", (p) => lost(p) > 0], ["no image scored", (p) => !scored(p)]);
  paged({
    table: "patients",
    count: patients.name.length,
    columns: {
      rank: (p) => p, name: (p) => patientLower[p], score: worstScore, pct: worstPct,
      images: (p) => patients.images[p], flagged: (p) => patients.flagged[p], lost,
      worst: (p) => (worst(p) < 0 ? null : lower[worst(p)]),
      R: (p) => patients.sides.R[p], L: (p) => patients.sides.L[p],
    },
    falls: ["score", "pct", "images", "flagged", "lost", "R", "L"],
    cells: (p) => [
      [scored(p) ? words(p + 1) : "–", "num"],
      [patientLink(p), "name short"],
      [scoreText(worstScore(p)), "num"],
      [pctText(worstPct(p)), "num"],
      ...eyes.map((side) => [scoreText(patients.sides[side][p]), "num"]),
      [words(patients.images[p]), "num"],
      [words(patients.flagged[p]), patients.flagged[p] ? "num flag" : "num"],
      [words(lost(p)), "num"],
      [worst(p) < 0 ? "–" : imageLink(worst(p)), "name"],
    ],
    choices: groups,
    finds: (p, wanted) => patientLower[p].includes(wanted),
    more: () => true,
  });
})();
