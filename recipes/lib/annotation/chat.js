import { Outbox, find, make, post, tellSaved } from "./outbox.js";

// A chat as people know it; what they do with a reply goes to the server as a reaction.

let implicit = true, busy = false;
let turns = []; // {role, content, job?, old?, shown?, thumb?}
let chat = ""; // its name
const outbox = new Outbox((entry) => post("/react", entry), (error) => tellSaved(outbox, error));

// What somebody did with a reply: explicit, or implicit with a word for it.
function react({ job, shown }, reaction) {
  if (reaction.implicit && !implicit) return null;
  const id = `${Date.now()}-${Math.random()}`, seconds = Math.max(0, (Date.now() - shown) / 1000);
  outbox.add(id, { job, id, reaction, seconds });
  return id;
}

function begin(kept = {}) {
  ({ chat = `${Date.now()}-${Math.random()}`, turns = [] } = kept);
}

// Replies

async function ask(attempt = 0) {
  const old = attempt ? turns.pop() : null;
  busy = true;
  find("hint").textContent = "";
  const boxes = [];
  try {
    const messages = turns.map(({ role, content }) => ({ role, content }));
    const { job } = await post("/say", { chat, messages, attempt });
    for (;;) {
      const { texts, shown, state, error } = await post("/reply", { job });
      if (boxes.length !== texts.length) boxes.splice(0, boxes.length, ...draw(texts.length));
      shown.forEach((text, place) => (boxes[place].textContent = text));
      find("talk").scrollTo(0, find("talk").scrollHeight);
      if (state === "failed") throw Object.assign(new Error(error), { status: 400 });
      if (state === "done") {
        if (texts.length === 2) choose(job, texts, shown);
        else turns.push({ role: "assistant", content: texts[0], visible: shown[0], job, attempt, shown: Date.now(), old }), paint();
        break;
      }
      await new Promise((next) => setTimeout(next, 100));
    }
  } catch (error) {
    if (old) turns.push(old);
    else find("words").value ||= turns.pop()?.content ?? "";
    paint();
    tellSaved(outbox, error);
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

function choose(job, texts, visible) {
  const shown = Date.now();
  const pick = (value, kept) => () => {
    react({ job, shown }, { kind: "pair", value });
    turns.push({ role: "assistant", content: texts[kept], visible: visible[kept], job, completion: kept, shown });
    paint();
  };
  find("talk").append(make("div", { className: "commands" },
    make("button", { className: "main", onclick: pick(0, 0) }, "A is better"),
    make("button", { onclick: pick(null, 0) }, "Tie"),
    make("button", { className: "main", onclick: pick(1, 1) }, "B is better")));
  find("talk").scrollTo(0, find("talk").scrollHeight);
}

// What stands under the last reply

const like = (turn, value, more) => react(turn, { kind: "thumb", value, completion: turn.completion ?? 0, ...more });

function commands(turn) {
  const thumb = (value) => () => {
    turn.thumb = { value, id: like(turn, value, { supersedes: turn.thumb?.id }) };
    paint();
  };
  const again = () => {
    if (busy) return;
    like(turn, false, { implicit: "asked again" });
    ask((turn.attempt ?? 0) + 1);
  };
  const copy = async () => {
    await navigator.clipboard.writeText(turn.content);
    like(turn, true, { implicit: "copied" });
    find("hint").textContent = "Copied.";
  };
  const button = (words, label, onclick, isOn = false) => make("button", { onclick, ariaLabel: label, title: label, ariaPressed: String(isOn), className: isOn ? "on" : "" }, words);
  return make("div", { className: "commands" },
    button("\ud83d\udc4d Good", "Good", thumb(true), turn.thumb?.value === true),
    button("\ud83d\udc4e Bad", "Bad", thumb(false), turn.thumb?.value === false),
    button("Again", "Another answer", again), button("Edit", "Edit the answer", () => edit(turn)),
    ...(navigator.clipboard ? [button("Copy", "Copy the answer", copy)] : [])); // plain HTTP has none
}

function compared(turn) {
  const say = (value) => () => {
    const { old } = turn;
    react(turn, { kind: "pair", value, other: old.job });
    // It goes on with the better one.
    Object.assign(turn, value === 1 ? { ...old, attempt: turn.attempt } : {}, { old: null });
    paint();
  };
  return make("div", { className: "commands" }, "Than before it is ",
    make("button", { onclick: say(0) }, "better"), make("button", { onclick: say(null) }, "as good"), make("button", { onclick: say(1) }, "worse"));
}

function edit(turn) {
  const area = make("textarea", { value: turn.content, dir: "auto", ariaLabel: "Your better answer", maxLength: 100000 });
  const save = () => {
    if (area.value.trim() && area.value !== turn.content.replace(/\r\n?/g, "\n")) {
      react(turn, { kind: "edit", value: area.value, completion: turn.completion ?? 0 });
      Object.assign(turn, { content: area.value, visible: area.value, job: null }); // no reply any more
    }
    paint();
  };
  find("talk").lastElementChild.replaceWith(make("div", { className: "commands" }, area, make("button", { className: "main", onclick: save }, "Keep"), make("button", { onclick: paint }, "Cancel")));
  area.focus();
}

function paint() {
  try {
    localStorage.setItem(`${outbox.box}-chat`, JSON.stringify({ chat, turns }));
  } catch { /* it is still on the screen */ }
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
  if (!words.trim() || !outbox.box || busy || last?.role === "user") return;
  if (last?.job) like(last, true, { implicit: "kept" });
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
find("new").addEventListener("click", () => busy || (begin(), paint(), find("words").focus()));
setInterval(() => outbox.entries.size && outbox.flush(), 1500);

const said = await post("/begin", {});
implicit = said.implicit;
outbox.open(said.box);
begin(JSON.parse(localStorage.getItem(`${said.box}-chat`) ?? "{}"));
if (turns.at(-1)?.role === "user") find("words").value = turns.pop().content;
paint();
tellSaved(outbox, null);
