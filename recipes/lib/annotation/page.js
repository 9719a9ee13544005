import { Outbox, find, make, post, tellSaved } from "./outbox.js";

const QUESTIONS = {
  pair: "Which answer is better?", rank: "Rank the answers", rating: "Rate from 1 (bad) to 5 (good)",
  thumb: "Is this a good answer?", edit: "Make this answer better", text: "Write the answer",
};
const all = (selector) => [...document.querySelectorAll(selector)];
const tab = takeTab();
const outbox = new Outbox(async (entry) => take(await post("/answer", { ...entry, ...wanted() })), tell);
let queue = []; // what is asked: the first is shown, the next is here already
let commands = []; // of what is shown: [keys, words, action, style]
let editor = null; // commands of what is being written
let progress = null, asking = null, since = 0;

// The server gives a tab back what it had in hand; one that closes leaves its name to the next.
function takeTab() {
  const free = Object.keys(localStorage).filter((key) => key.startsWith("tab/"));
  const name = free.sort((a, b) => localStorage[b] - localStorage[a])[0] ?? `tab/${Math.random()}`; // the last
  localStorage.removeItem(name);
  addEventListener("pagehide", () => localStorage.setItem(name, Date.now()));
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  return name.slice(4);
}

function wanted() {
  const holding = [...queue.map((item) => item.claim), ...outbox.entries.keys()];
  return { tab, holding, number: Math.max(0, 2 - queue.length) };
}

function take(said, atFront = false) {
  ({ progress } = said);
  if (outbox.box !== said.box) outbox.open(said.box);
  const had = wanted().holding, shown = queue[0];
  const fresh = said.asked.filter(({ claim }) => !had.includes(claim));
  for (const item of fresh) item.draft = { taken: [], edits: {}, text: "", reason: "" };
  queue = progress.done ? queue.slice(0, editor ? 1 : 0) : atFront ? [...fresh, ...queue] : [...queue, ...fresh];
  if (queue[0] !== shown || !commands.length) paint();
  tell(null);
}

async function ask(path, body, atFront) {
  const said = await post(path, body).catch(tell);
  if (said) take(said, atFront);
  return outbox.adopt();
}

function goOnAsking() {
  if (queue.length > 1 || progress?.done || outbox.entries.size) outbox.adopt();
  else asking ??= ask("/next", wanted()).finally(() => (asking = null));
}

setInterval(goOnAsking, 1500);
setInterval(() => queue.length && ask("/next", wanted()), 60000); // whoever thinks keeps what is lent

function tell(error) {
  tellSaved(outbox, error);
  if (!progress) return;
  const { answered, left, waiting, done } = progress;
  find("count").textContent = `${answered} answered, ${left} left`;
  Object.assign(find("bar"), { max: answered + left || 1, value: answered });
  const empty = outbox.entries.size ? "One moment \u2026" : !done && (waiting || left) ? "Waiting for completions \u2026" : "All done, thank you!";
  find("question").textContent = queue[0] ? QUESTIONS[queue[0].kind] : empty;
}

// The texts

const nameOf = (place) => (queue[0].completions.length > 1 ? String.fromCharCode(65 + place) : "Answer");
const stored = (place) => queue[0].shown_order[place];

function escape(character) { // as Python writes it
  const code = character.codePointAt(0), [sign, width] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
  return `\\${sign}${code.toString(16).padStart(width, "0")}`;
}

const spans = (parts) => parts.map((part, i) =>
  i % 2 ? make("span", { className: "escape" }, [...part].map(escape).join("")) : part);
const textOf = (...children) => make("div", { className: "text", dir: "auto" }, ...children);

function textBox(messages, label) {
  const box = make("div", { className: "box", tabIndex: 0, role: "group", ariaLabel: label });
  for (const { role, parts } of messages) box.append(role && make("h3", {}, role), textOf(...spans(parts)));
  return box;
}

function paint() {
  const item = queue[0];
  editor = null;
  document.body.className = item ? `${item.kind} of-${item.completions.length}` : "empty";
  find("own").replaceChildren();
  tell(null);
  if (!item) return offer([], TOOLS.filter(([[key]]) => key === "u"));
  since = performance.now();
  find("live").textContent = `Next: ${QUESTIONS[item.kind]}`;
  find("prompt").replaceChildren(make("h2", {}, "Prompt"), textBox(item.prompt, "Prompt"));
  find("completions").replaceChildren(...item.completions.map((messages, place) => {
    const name = nameOf(place), change = make("button", { onclick: () => edit(place), ariaLabel: `Edit ${name}` }, "Edit");
    return make("article", {}, make("h2", {}, name), make("b", {}), change, textBox(messages, name));
  }));
  all("main")[0].scrollTo(0, 0);
  if (item.kind === "edit") edit(0);
  else if (item.kind === "text") write("text", "Your own answer");
  else showAnswers();
}

// Answers

function submit(answers) {
  const { claim, draft: { edits, text, reason } } = queue[0], seconds = (performance.now() - since) / 1000;
  const written = Object.entries(edits).map(([place, value]) => ({ kind: "edit", completion: stored(place), value }));
  if (text) written.push({ kind: "text", value: text });
  queue.shift();
  outbox.add(claim, { claim, answers: answers ? [...answers, ...written] : [], seconds, reason });
  paint();
}

function pair() {
  const better = (place, strength) => () => submit([{ kind: "pair", value: stored(place), strength }]);
  return [
    [["Shift+1", "Shift+ArrowLeft"], "A much better", better(0, 3), "much"],
    [["1", "ArrowLeft"], "A better", better(0, null), "main"],
    [["0", "="], "Tie", () => submit([{ kind: "pair", value: null }])],
    [["2", "ArrowRight"], "B better", better(1, null), "main"],
    [["Shift+2", "Shift+ArrowRight"], "B much better", better(1, 3), "much"],
  ];
}

// The other kinds take several steps: `taken` has the choices so far.
const step = (taken, choice) => () => (taken.push(choice), showAnswers());
const goOn = (taken, isDone, send) => [
  taken.length && [["Backspace"], "Back", () => (taken.pop(), showAnswers())],
  isDone && [["Enter"], "Save", send, "main"],
];

function rank({ completions, draft: { taken } }) {
  const value = completions.map(() => 0), isTie = taken.at(-1) === "=", last = taken.at(isTie ? -2 : -1);
  let rank = 0;
  taken.forEach((place, i) => place !== "=" && (value[stored(place)] = taken[i - 1] === "=" ? rank : ++rank));
  const left = [...completions.keys()].filter((place) => !taken.includes(place));
  mark((place) => value[stored(place)] || "");
  hint(!left.length ? "" : isTie ? `As good as ${nameOf(last)}:` : taken.length ? "The next best:" : "The best:");
  return [
    ...left.map((place) => [[`${place + 1}`], nameOf(place), step(taken, place), "main"]),
    taken.length && !isTie && left.length && [["="], `Tie with ${nameOf(last)}`, step(taken, "=")],
    ...goOn(taken, !left.length, () => submit([{ kind: "rank", value }])),
  ];
}

function cells({ kind, aspects, completions, draft: { taken } }) {
  const isThumb = kind === "thumb", words = isThumb ? ["\ud83d\udc4d Good", "\ud83d\udc4e Bad"] : ["1", "2", "3", "4", "5"];
  const asked = completions.flatMap((_, place) => aspects.map((aspect) => ({ place, aspect })));
  const now = asked[taken.length], isOne = asked.length === 1;
  const send = () => submit(asked.map(({ place, aspect }, i) =>
    ({ kind, completion: stored(place), aspect, value: isThumb ? !taken[i] : taken[i] + 1 })));
  mark((at) => taken.map((choice, i) => asked[i].place === at && `${asked[i].aspect} ${words[choice]}`).filter(Boolean).join(", "));
  hint(now && !isOne ? `${nameOf(now.place)}: ${now.aspect} (${taken.length + 1} of ${asked.length})` : "");
  const choose = (choice) => (isOne ? () => (taken.push(choice), send()) : step(taken, choice));
  return [...(now ? words : []).map((word, i) => [[`${i + 1}`], word, choose(i), "main"]), ...goOn(taken, !now, send)];
}

const KINDS = { pair, rank, rating: cells, thumb: cells, edit: () => [], text: () => [] };
const TOOLS = [
  [["e"], "Edit", () => edit()], [["w"], "Write", () => write("text", "Your own answer")],
  [["r"], "Reason", () => write("reason", "Why?")], [["x"], "Cannot judge", () => submit(null)], [["u"], "Undo", undo],
  [["d"], "Differences", differences], [["m"], "Markdown", markdown], [["?"], "Keys", help],
];
const hint = (words) => (find("hint").textContent = words);
const mark = (words) => all("article b").forEach((made, place) => (made.textContent = words(place)));

function showAnswers() {
  const item = queue[0], { edits, text, reason } = item.draft;
  hint("");
  const list = editor ?? KINDS[item.kind](item).filter(Boolean);
  const written = [...Object.keys(edits).map((place) => `edit of ${nameOf(+place)}`), ...(text ? ["own answer"] : [])];
  const kept = [...written, ...(reason ? ["reason"] : [])];
  if (!editor && kept.length) find("hint").textContent += ` Goes along: ${kept.join(", ")}.`;
  if (!editor && written.length) list.push([["s"], "Send only what I wrote", () => submit([])]);
  const tools = TOOLS.filter(([[key]]) => !(editor && "ewrdm".includes(key)) && (key !== "d" || item.completions.length > 1));
  offer(list, tools);
}

function offer(list, tools) {
  const focused = document.activeElement.dataset.key;
  commands = [...list, ...tools];
  find("answers").replaceChildren(...list.map(button));
  find("tools").replaceChildren(...tools.map(button));
  all("footer button").find((made) => made.dataset.key === focused)?.focus();
}

const SIGNS = { ArrowLeft: "\u2190", ArrowRight: "\u2192", Backspace: "\u232b", Enter: "\u21b5", Shift: "\u21e7", Escape: "Esc" };
const signs = (key) => key.length > 1 ? key.split("+").map((name) => SIGNS[name] ?? name).join("") : key.toUpperCase();

function button([keys, words, onclick, className = ""]) {
  const key = make("kbd", { ariaHidden: "true", hidden: words === keys[0] }, signs(keys[0]));
  const made = make("button", { className, onclick, ariaKeyShortcuts: keys[0] }, words, key);
  made.dataset.key = keys[0];
  return made;
}

// Writing, looking closer, going back

function openEditor(host, title, text, keep) {
  const area = make("textarea", { value: text, dir: "auto", ariaLabel: title, maxLength: 100000 }), before = [...host.childNodes];
  const close = () => (host.replaceChildren(...before), (editor = null), showAnswers());
  const done = () => {
    keep(area.value.trim() ? area.value : "");
    close();
    const { kind, draft } = queue[0];
    if ((kind === "edit" && draft.edits[0]) || (kind === "text" && draft.text)) submit([]);
  };
  editor = [[["Ctrl+Enter"], "Keep", done, "main"], [["Escape"], "Cancel", close]];
  host.replaceChildren(make("article", {}, make("h2", {}, title), area));
  showAnswers();
  area.focus();
}

function edit(place = queue[0].completions.length > 1 ? null : 0) {
  const { completions, draft: { edits } } = queue[0];
  const choose = (next) => () => ((editor = null), next === undefined ? showAnswers() : edit(next));
  if (place === null) {
    editor = completions.map((_, i) => [[`${i + 1}`], `Edit ${nameOf(i)}`, choose(i), "main"]);
    editor.push([["Escape"], "Cancel", choose()]);
    showAnswers();
  } else if (!editor) {
    const raw = completions[place].at(-1).parts.join("");
    const keep = (said) => (said && said !== raw.replace(/\r\n?/g, "\n") ? (edits[place] = said) : delete edits[place]);
    openEditor(find("completions").children[place], "Your version", edits[place] ?? raw, keep);
  }
}

function write(name, title) {
  const { draft } = queue[0];
  openEditor(find("own"), title, draft[name], (said) => (draft[name] = said));
}

async function undo() {
  await outbox.flush();
  if (!outbox.entries.size) await ask("/undo", { tab }, true);
}

// Another view of the completions, and the texts again when pressed once more.
async function look(view, fill) {
  const item = queue[0], boxes = item.completions.map((messages, place) => textBox(messages, nameOf(place)));
  item.view = item.view === view ? null : view;
  if (item.view) await fill(item, boxes).catch(tell);
  if (queue[0] === item && !editor) all("#completions .box").forEach((box, i) => box.replaceWith(boxes[i]));
}

function differences() {
  return look("differences", async ({ claim }, boxes) => {
    const told = (await post("/differences", { claim })).differences;
    boxes.forEach((box, place) => box.replaceChildren(textOf(
      ...told[place].map(([differs, parts]) => make(differs ? "mark" : "span", {}, ...spans(parts))))));
  });
}

function markdown() {
  return look("markdown", ({ completions }, boxes) => Promise.all(boxes.flatMap((box, place) =>
    [...box.querySelectorAll(".text")].map(async (block, i) => {
      const { html } = await post("/markdown", { text: completions[place][i].parts.join("") });
      Object.assign(block, { innerHTML: html, className: "markdown" }); // without links, pictures, attributes
    }))));
}

function help() {
  find("keys").replaceChildren(...commands.flatMap(([keys, words]) =>
    [make("dt", {}, keys.map(signs).join("  ")), make("dd", {}, words)]));
  find("help").showModal();
}

function pressed({ code, key, ctrlKey, metaKey, altKey, shiftKey }) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
  if (ctrlKey || metaKey || altKey) return key === "Enter" && !altKey ? "Ctrl+Enter" : "";
  const name = digit && !"=?".includes(key) ? digit : key.length === 1 ? key.toLowerCase() : key;
  return shiftKey && (name === digit || name.startsWith("Arrow")) ? `Shift+${name}` : name;
}

addEventListener("keydown", (event) => {
  const key = pressed(event), { tagName } = event.target;
  if (event.repeat || find("help").open || (tagName === "BUTTON" && [" ", "Enter"].includes(key))) return;
  if (tagName === "TEXTAREA" && !["Ctrl+Enter", "Escape"].includes(key)) return;
  const found = commands.find(([keys]) => keys.includes(key));
  if (found) event.preventDefault(), found[2]();
});
goOnAsking();
