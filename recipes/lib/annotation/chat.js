import { Outbox, find, make, post } from "./outbox.js";

// A chat as people know it; what they do with a reply goes to the server as a reaction.

let box = "", implicit = true, busy = false;
let turns = []; // {role, content, job?, old?, shown?, thumb?}
const outbox = new Outbox((entry) => post("/react", { job: entry.job, id: entry.id, reaction: entry.reaction, seconds: entry.seconds }), showSaved);

function showSaved(error) {
  const number = outbox.entries.size;
  find("saved").textContent = number ? "saving \u2026" : box ? "\u2713 saved" : "";
  find("banner").textContent = error ? `${number ? `Not saved yet (${number}). ` : ""}${error.status ? error.message : "The server does not answer; this page tries again."}` : "";
  find("banner").hidden = !error;
}

// What somebody did with a reply: explicit, or implicit with a word for it.
function react(turn, reaction, name = `${Date.now()}-${Math.random()}`) {
  if (reaction.implicit && !implicit) return null;
  const seconds = Math.max(0, (Date.now() - (turn.shown ?? Date.now())) / 1000);
  outbox.add(name, { job: turn.job, id: name, reaction, seconds });
  return name;
}

function keep() {
  try {
    localStorage.setItem(`${box}-chat`, JSON.stringify(turns));
  } catch { /* it is still on the screen */ }
}

const messages = () => turns.map(({ role, content }) => ({ role, content }));

// Replies

async function ask(attempt = 0) {
  const old = attempt ? turns.pop() : null;
  busy = true;
  find("hint").textContent = "";
  const boxes = [];
  try {
    const { job } = await post("/say", { messages: messages(), attempt });
    for (;;) {
      const { texts, shown, state, error } = await post("/reply", { job });
      if (boxes.length !== texts.length) boxes.splice(0, boxes.length, ...draw(texts.length));
      shown.forEach((text, place) => (boxes[place].textContent = text));
      find("talk").scrollTo(0, find("talk").scrollHeight);
      if (state === "failed") throw Object.assign(new Error(error), { status: 400 });
      if (state === "done") {
        if (texts.length === 2) choose(job, texts, shown);
        else finish({ role: "assistant", content: texts[0], visible: shown[0], job, attempt, shown: Date.now(), old });
        break;
      }
      await new Promise((next) => setTimeout(next, 100));
    }
  } catch (error) {
    if (old) turns.push(old);
    else find("words").value ||= turns.pop()?.content ?? "";
    paint();
    showSaved(error);
  }
  busy = false;
}

function draw(number) {
  paint();
  const boxes = Array.from({ length: number }, () => make("div", { className: "text", dir: "auto" }));
  const shown = boxes.map((one, place) => make("article", {}, ...(number > 1 ? [make("h2", {}, "AB"[place])] : []), one));
  find("talk").append(make("div", { className: "replies" }, ...shown));
  return boxes;
}

function finish(turn) {
  turns.push(turn);
  paint();
}

function choose(job, texts, visible) {
  const shown = Date.now();
  const pick = (value, kept) => () => {
    react({ job, shown }, { kind: "pair", value });
    finish({ role: "assistant", content: texts[kept], visible: visible[kept], job, completion: kept, shown });
  };
  find("talk").append(make("div", { className: "commands" },
    make("button", { className: "main", onclick: pick(0, 0) }, "A is better"),
    make("button", { onclick: pick(null, 0) }, "Tie"),
    make("button", { className: "main", onclick: pick(1, 1) }, "B is better")));
  find("talk").scrollTo(0, find("talk").scrollHeight);
}

// What stands under the last reply

function commands(turn) {
  const place = turn.completion ?? 0;
  const thumb = (value) => () => {
    const reaction = { kind: "thumb", value, completion: place };
    turn.thumb = { value, id: react(turn, turn.thumb ? { ...reaction, supersedes: turn.thumb.id } : reaction) };
    paint();
  };
  const again = () => {
    if (busy) return;
    react(turn, { kind: "thumb", value: false, completion: place, implicit: "asked again" });
    ask((turn.attempt ?? 0) + 1);
  };
  const copy = async () => {
    await navigator.clipboard.writeText(turn.content);
    react(turn, { kind: "thumb", value: true, completion: place, implicit: "copied" });
    find("hint").textContent = "Copied.";
  };
  const button = (words, label, onclick, isOn = false) => make("button", { onclick, ariaLabel: label, title: label, ariaPressed: String(isOn), className: isOn ? "on" : "" }, words);
  return make("div", { className: "commands" },
    button("\ud83d\udc4d Good", "Good", thumb(true), turn.thumb?.value === true),
    button("\ud83d\udc4e Bad", "Bad", thumb(false), turn.thumb?.value === false),
    button("Again", "Another answer", again), button("Edit", "Edit the answer", () => edit(turn, place)),
    ...(navigator.clipboard ? [button("Copy", "Copy the answer", copy)] : [])); // plain HTTP has none
}

function compared(turn) {
  const say = (value) => () => {
    const { old } = turn;
    react(turn, { kind: "pair", value, other: old.job });
    Object.assign(turn, { old: null }, value === 1 ? { ...old, old: null } : {}); // it goes on with the better one
    paint();
  };
  return make("div", { className: "commands" }, "Than before it is ",
    make("button", { onclick: say(0) }, "better"), make("button", { onclick: say(null) }, "as good"), make("button", { onclick: say(1) }, "worse"));
}

function edit(turn, place) {
  const area = make("textarea", { value: turn.content, dir: "auto", ariaLabel: "Your better answer", maxLength: 100000 });
  const save = () => {
    if (area.value.trim() && area.value !== turn.content) {
      react(turn, { kind: "edit", value: area.value, completion: place });
      turn.content = turn.visible = area.value;
    }
    paint();
  };
  find("talk").lastElementChild.replaceWith(make("div", { className: "commands" }, area, make("button", { className: "main", onclick: save }, "Keep"), make("button", { onclick: paint }, "Cancel")));
  area.focus();
}

function paint() {
  keep();
  const last = turns.at(-1);
  find("talk").replaceChildren(...turns.map(({ role, content, visible }) => make("article", { className: role }, make("div", { className: "text", dir: "auto" }, visible ?? content))));
  if (last?.job && last.role === "assistant") {
    if (last.old && last.old.completion === undefined) find("talk").append(compared(last));
    find("talk").append(commands(last));
  }
  find("talk").scrollTo(0, find("talk").scrollHeight);
}

find("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = find("words").value, last = turns.at(-1);
  if (!words.trim() || !box || busy || last?.role === "user") return;
  if (last?.job) react(last, { kind: "thumb", value: true, completion: last.completion ?? 0, implicit: "kept" });
  turns.push({ role: "user", content: words });
  find("words").value = "";
  paint();
  ask();
});
find("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("say").requestSubmit();
  }
});
find("new").addEventListener("click", () => busy || ((turns = []), paint(), find("words").focus()));
setInterval(() => outbox.entries.size && outbox.flush(), 1500);

const said = await post("/begin", {});
({ box, implicit } = said);
outbox.open(box);
turns = JSON.parse(localStorage.getItem(`${box}-chat`) ?? "[]");
if (turns.at(-1)?.role === "user") find("words").value = turns.pop().content;
paint();
outbox.adopt();
showSaved(null);
