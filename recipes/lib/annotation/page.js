import { Outbox, post } from "./outbox.js";

const QUESTIONS = {
  pair: "Which answer is better?", rank: "Rank the answers", rating: "Rate from 1 (bad) to 5 (good)",
  thumb: "Is this a good answer?", edit: "Make this answer better", text: "Write the answer",
};
const find = (id) => document.getElementById(id);
const tab = takeTab();
let queue = []; // what is asked: the first is shown, the next is here already
let progress = null, since = 0, editor = null;

function make(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
}

// A name for this tab, by which the server gives it back what it had in hand. One that is closed or
// loaded anew leaves its name to the next.
function takeTab() {
  const free = Object.keys(localStorage).find((key) => key.startsWith("tab/"));
  if (free) localStorage.removeItem(free);
  const name = free ?? `tab/${Array.from(crypto.getRandomValues(new Uint8Array(9)), (n) => n.toString(36)).join("")}`;
  addEventListener("pagehide", () => localStorage.setItem(name, ""));
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  return name.slice(4);
}

// Talking to the server

const outbox = new Outbox(
  async (entry) => take(await post("/answer", { ...entry, ...holding(), at: undefined })),
  showSaved,
);

function holding() {
  const claims = [...queue.map((one) => one.claim), ...outbox.entries.keys()];
  return { tab, holding: claims, number: Math.max(0, 2 - queue.length) };
}

function take(said, atFront = false) {
  progress = said.progress;
  outbox.open(said.box);
  const have = new Set(holding().holding);
  const fresh = said.asked.filter((one) => !have.has(one.claim)).map((one) => ({ ...one, draft: newDraft() }));
  const shown = queue[0];
  queue = progress.done ? [] : atFront ? [...fresh, ...queue] : [...queue, ...fresh];
  if (queue[0] !== shown || !shown) paint();
  showSaved(null);
}

async function load() {
  try {
    take(await post("/next", holding()));
    await outbox.adopt();
  } catch (error) {
    showSaved(error);
  }
}

function showSaved(error) {
  const number = outbox.entries.size;
  find("saved").textContent = number ? "saving \u2026" : progress ? "\u2713 saved" : "";
  const told = error ? error.status ? error.message : "The server does not answer; this page tries again." : "";
  find("banner").textContent = told && number ? `Not saved yet (${number}). ${told}` : told;
  find("banner").hidden = !told;
  if (!progress) return;
  find("count").textContent = `${progress.answered} answered, ${progress.left} left`;
  find("bar").value = progress.answered / Math.max(1, progress.answered + progress.left);
}

setInterval(() => (outbox.entries.size ? outbox.flush() : queue.length < 2 && !progress?.done && load()), 1500);

// One item

function newDraft() {
  return { cells: [], ranked: [], edits: {}, text: "", reason: "", spent: 0 };
}

const letter = (place) => (queue[0].completions.length > 1 ? String.fromCharCode(65 + place) : "the answer");
const rawText = (messages) => messages.at(-1).parts.join("");

function escape(character) {
  const code = character.codePointAt(0), digits = code.toString(16);
  const [sign, width] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
  return `\\${sign}${digits.padStart(width, "0")}`;
}

function spans(parts) {
  return parts.map((part, i) => (i % 2 ? make("span", { className: "hidden-character", title: "an invisible character" }, [...part].map(escape).join("")) : part));
}

function textBox(messages, label) {
  const box = make("div", { className: "box", tabIndex: 0, role: "group", ariaLabel: label });
  for (const { role, parts } of messages) {
    if (role) box.append(make("p", { className: "role" }, role));
    box.append(make("div", { className: "text", dir: "auto" }, ...(parts.join("") ? spans(parts) : ["(empty)"])));
  }
  return box;
}

function paint() {
  const item = queue[0];
  editor = null;
  find("prompt").hidden = document.querySelector("footer").hidden = !item;
  if (!item) {
    const told = !progress || outbox.entries.size ? "One moment \u2026" : !progress.done && (progress.waiting || progress.left) ? "Waiting for completions \u2026" : "All done, thank you!";
    find("question").textContent = find("live").textContent = told;
    find("completions").replaceChildren();
    return;
  }
  since = performance.now();
  find("question").textContent = QUESTIONS[item.kind];
  find("live").textContent = `Next: ${QUESTIONS[item.kind]}`;
  find("prompt").replaceChildren(make("h2", {}, "Prompt"), textBox(item.prompt, "Prompt"));
  find("completions").className = `of-${item.completions.length}`;
  find("completions").replaceChildren(...item.completions.map((messages, place) => {
    const head = make("div", { className: "head" }, make("h2", {}, item.completions.length > 1 ? letter(place) : "Answer"), make("span", { className: "mark" }),
      make("button", { onclick: () => editCompletion(place), ariaLabel: `Edit ${letter(place)}` }, "Edit"));
    return make("article", {}, head, textBox(messages, `Answer ${letter(place)}`));
  }));
  document.querySelector("main").scrollTo(0, 0);
  if (item.kind === "edit") editCompletion(0);
  else if (item.kind === "text") write();
  else showAnswers();
}

// Answering: each kind is a list of commands [keys, words, action, style].

const stored = (place) => queue[0].shown_order[place];

function submit(answers) {
  const { claim, draft } = queue[0];
  const more = Object.entries(draft.edits).map(([place, value]) => ({ kind: "edit", completion: stored(+place), value }));
  if (draft.text) more.push({ kind: "text", value: draft.text });
  const seconds = (draft.spent + performance.now() - since) / 1000;
  const entry = { claim, answers: answers && [...answers, ...more], seconds, reason: draft.reason };
  queue.shift();
  outbox.add(claim, { ...entry, answers: entry.answers ?? [] });
  paint();
  showSaved(outbox.error);
}

const better = (place, strength) => () => submit([{ kind: "pair", value: stored(place), strength }]);

function pairCommands() {
  return [
    [["Shift+1", "Shift+ArrowLeft"], "A is much better", better(0, 3), "much"],
    [["1", "ArrowLeft"], "A is better", better(0, null), "main"],
    [["0", "="], "Tie", () => submit([{ kind: "pair", value: null }])],
    [["2", "ArrowRight"], "B is better", better(1, null), "main"],
    [["Shift+2", "Shift+ArrowRight"], "B is much better", better(1, 3), "much"],
  ];
}

function rankCommands({ completions, draft }) {
  const { ranked } = draft;
  const left = completions.map((_, place) => place).filter((place) => !ranked.some((one) => one.place === place));
  let rank = 0;
  for (const one of ranked) one.rank = one.isTie ? rank : ++rank;
  for (const { place, rank } of ranked) mark(place, `${rank}.`);
  const next = (place) => () => (ranked.push({ place, isTie: draft.isTie }), (draft.isTie = false), showAnswers());
  const value = completions.map(() => 0);
  for (const one of ranked) value[stored(one.place)] = one.rank;
  const last = ranked.length ? letter(ranked.at(-1).place) : "";
  find("hint").textContent = !left.length ? "" : draft.isTie ? `As good as ${last}:` : last ? "Next best:" : "The best:";
  return [
    ...left.map((place) => [[String(place + 1)], letter(place), next(place), "main"]),
    last && left.length && [["="], `Tie with ${last}`, () => ((draft.isTie = !draft.isTie), showAnswers()), draft.isTie ? "on" : ""],
    last && [["Backspace"], "Back", () => (ranked.pop(), (draft.isTie = false), showAnswers())],
    !left.length && [["Enter"], "Save the ranking", () => submit([{ kind: "rank", value }]), "main"],
  ];
}

function cellCommands({ kind, aspects, completions, draft }) {
  const cells = completions.flatMap((_, place) => (kind === "thumb" ? ["overall"] : aspects).map((aspect) => ({ place, aspect })));
  const words = kind === "thumb" ? ["\ud83d\udc4d Good", "\ud83d\udc4e Bad"] : ["1", "2", "3", "4", "5"];
  const done = draft.cells.map((choice, i) => ({ ...cells[i], choice }));
  completions.forEach((_, place) => mark(place, done.filter((one) => one.place === place).map((one) => `${aspects.length > 1 ? `${one.aspect} ` : ""}${words[one.choice]}`).join(", ")));
  const send = () => submit(done.map(({ place, aspect, choice }) => ({ kind, completion: stored(place), aspect, value: kind === "thumb" ? choice === 0 : choice + 1 })));
  const choose = (choice) => () => (draft.cells.push(choice), cells.length === 1 ? (done.push({ ...cells[0], choice }), send()) : showAnswers());
  const now = cells[done.length];
  find("hint").textContent = now && cells.length > 1 ? `${letter(now.place)}: ${now.aspect} (${done.length + 1} of ${cells.length})` : "";
  return [
    ...(now ? words.map((word, choice) => [[String(choice + 1)], word, choose(choice), "main"]) : [[["Enter"], "Save the ratings", send, "main"]]),
    done.length && [["Backspace"], "Back", () => (draft.cells.pop(), showAnswers())],
  ];
}

const COMMANDS = { pair: pairCommands, rank: rankCommands, rating: cellCommands, thumb: cellCommands };
const TOOLS = [
  [["e"], "Edit", () => editCompletion(null)],
  [["w"], "Write", write],
  [["r"], "Reason", () => edit("Why?", queue[0].draft.reason, (said) => (queue[0].draft.reason = said), "reason")],
  [["x"], "Cannot judge", () => submit(null)],
  [["u"], "Undo", undo],
  [["d"], "Differences", differences],
  [["m"], "Markdown", markdown],
  [["?"], "Keys", help],
];
let commands = [];

function mark(place, words) {
  find("completions").children[place].querySelector(".mark").textContent = words;
}

function showAnswers() {
  const item = queue[0], { draft } = item, focused = document.activeElement.dataset.key;
  find("hint").textContent = "";
  const kept = Object.keys(draft.edits).length > 0 || draft.text;
  const list = editor ? editor.commands : (COMMANDS[item.kind]?.(item) ?? []).filter(Boolean);
  if (!editor && kept && !list.some(([keys]) => keys.includes("Enter"))) list.push([["Enter"], "Send only what I wrote", () => submit([]), ""]);
  if (!editor && (kept || draft.reason)) find("hint").textContent += ` Kept for your answer: ${[draft.reason && "reason", draft.text && "your own", ...Object.keys(draft.edits).map((place) => `${letter(+place)} edited`)].filter(Boolean).join(", ")}.`;
  const tools = TOOLS.filter(([keys]) => !(editor && "ewr".includes(keys[0])) && !(keys[0] === "d" && item.completions.length < 2));
  commands = [...list, ...tools];
  find("answers").replaceChildren(...list.map(button));
  find("tools").replaceChildren(...tools.map(button));
  document.querySelector(`footer [data-key="${CSS.escape(focused ?? "")}"]`)?.focus();
}

const KEY_NAMES = { ArrowLeft: "\u2190", ArrowRight: "\u2192", Backspace: "\u232b", Enter: "\u21b5", Escape: "Esc" };
const keyName = (key) => key.replace("Shift+", "\u21e7").replace(/[A-Z][a-z]+\w*$/, (name) => KEY_NAMES[name] ?? name).replace(/^[a-z]$/, (name) => name.toUpperCase());

function button([keys, words, action, style = ""]) {
  const made = make("button", { className: style, onclick: action, ariaKeyShortcuts: keys[0] }, words, " ", make("kbd", { ariaHidden: "true" }, keyName(keys[0])));
  made.dataset.key = keys[0];
  return made;
}

// Writing, looking closer, going back

function edit(title, text, keep, name, host = null) {
  host ??= find("completions").appendChild(make("article", { className: "own" }));
  const before = [...host.childNodes];
  const area = make("textarea", { value: text, dir: "auto", ariaLabel: title, maxLength: 100000, id: name });
  const close = () => {
    editor = null;
    host.classList.contains("own") ? host.remove() : host.replaceChildren(...before);
    showAnswers();
  };
  const done = () => {
    const { kind } = queue[0], said = area.value.trim() && area.value !== rawOf(host) ? area.value : "";
    keep(said);
    close();
    if (kind === "edit" || kind === "text") said ? submit([]) : paint();
  };
  editor = { area, commands: [[["Ctrl+Enter"], "Keep", done, "main"], [["Escape"], "Cancel", close]] };
  host.replaceChildren(make("h2", {}, title), area);
  showAnswers();
  area.focus();
}

const rawOf = (host) => (host.classList.contains("own") ? null : rawText(queue[0].completions[[...host.parentNode.children].indexOf(host)]));

function editCompletion(place) {
  const { draft, completions } = queue[0];
  if (editor) return;
  if (place === null && completions.length > 1) {
    const list = completions.map((_, i) => [[String(i + 1)], `Edit ${letter(i)}`, () => ((editor = null), editCompletion(i)), "main"]);
    editor = { commands: [...list, [["Escape"], "Cancel", () => ((editor = null), showAnswers())]] };
    showAnswers();
    return;
  }
  const at = place ?? 0, host = find("completions").children[at];
  const keep = (said) => (said ? (draft.edits[at] = said) : delete draft.edits[at]);
  edit(`Edit ${letter(at)}`, draft.edits[at] ?? rawText(completions[at]), keep, "edit", host);
}

function write() {
  if (!editor) edit("Your own answer", queue[0].draft.text, (said) => (queue[0].draft.text = said), "write");
}

async function undo() {
  await outbox.flush();
  if (outbox.entries.size) return;
  try {
    const said = await post("/undo", { tab });
    take(said, true);
    find("live").textContent = said.asked.length ? "Taken back" : "There is nothing to take back.";
  } catch (error) {
    showSaved(error);
  }
}

// Shows other views of the texts, and the texts again when pressed once more.
async function look(view, fill) {
  const item = queue[0], articles = [...find("completions").children].slice(0, item.completions.length);
  item.view = item.view === view ? null : view;
  const boxes = item.completions.map((messages, place) => textBox(messages, `Answer ${letter(place)}`));
  try {
    if (item.view) await fill(item, boxes);
  } catch (error) {
    showSaved(error);
  }
  if (queue[0] === item && !editor) boxes.forEach((box, place) => articles[place].querySelector(".box").replaceWith(box));
}

function differences() {
  return look("differences", async ({ claim }, boxes) => {
    const marked = (await post("/differences", { claim })).differences;
    boxes.forEach((box, place) => box.replaceChildren(make("div", { className: "text", dir: "auto" },
      ...marked[place].map(([differs, parts]) => make(differs ? "mark" : "span", {}, ...spans(parts))))));
  });
}

function markdown() {
  return look("markdown", (item, boxes) => Promise.all(boxes.flatMap((box, place) =>
    [...box.querySelectorAll(".text")].map(async (block, i) => {
      const { html } = await post("/markdown", { text: item.completions[place][i].parts.join("") });
      block.innerHTML = html; // made by the server of Markdown, without links, pictures, attributes
      block.classList.add("markdown");
    }))));
}

function help() {
  find("keys").replaceChildren(...commands.flatMap(([keys, words]) => [make("dt", {}, keys.map(keyName).join("  ")), make("dd", {}, words)]));
  find("help").showModal();
}

function pressed(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1], { key } = event;
  if (key === "Enter" && (event.ctrlKey || event.metaKey)) return "Ctrl+Enter";
  if (event.ctrlKey || event.metaKey || event.altKey) return "";
  if (digit && !"=?".includes(key)) return event.shiftKey ? `Shift+${digit}` : digit;
  return key.startsWith("Arrow") && event.shiftKey ? `Shift+${key}` : key.length === 1 ? key.toLowerCase() : key;
}

addEventListener("keydown", (event) => {
  const key = pressed(event), onButton = event.target.tagName === "BUTTON";
  if (event.repeat || find("help").open || !queue[0] || (onButton && [" ", "Enter"].includes(key))) return;
  if (event.target.tagName === "TEXTAREA" && !["Ctrl+Enter", "Escape"].includes(key)) return;
  const found = commands.find(([keys]) => keys.includes(key));
  if (!found) return;
  event.preventDefault();
  found[2]();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden && queue[0]) queue[0].draft.spent += performance.now() - since;
  since = performance.now();
});
load();
