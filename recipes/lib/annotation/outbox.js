// What both pages share. What somebody answered stays in the outbox, in memory and in localStorage,
// until the server has it.

export const find = (id) => document.getElementById(id);
export const make = (tag, fields, ...children) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
};

export function tellSaved({ entries, refused, box }, error) {
  const number = entries.size;
  const why = !error ? "" : error.status ? error.message : "The server does not answer; this page tries again.";
  const told = why + refused;
  find("banner").hidden = !told;
  find("banner").textContent = number ? `Not saved yet (${number}). ${told}` : told;
  find("saved").textContent = number ? "saving \u2026" : box ? "\u2713 saved" : "";
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" }, signal = AbortSignal.timeout(20000);
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  const said = await answer.json().catch(() => null);
  if (answer.ok && said) return said;
  // Whoever else answers, such as a proxy, does not say what becomes of an answer.
  const isRefused = said !== null && [400, 413].includes(answer.status);
  throw Object.assign(new Error(said?.error ?? answer.statusText), { status: answer.status, isRefused });
}

export class Outbox {
  // send(entry) posts an entry; told(error) hears after each try, null where it went well.
  constructor(send, told) {
    Object.assign(this, { send, told, box: "", entries: new Map(), running: null, refused: "" });
  }

  open(box) {
    Object.assign(this, { box, entries: new Map() });
    this.adopt(0);
  }

  add(claim, entry) {
    this.entries.set(claim, entry);
    try {
      localStorage.setItem(`${this.box}/${claim}`, JSON.stringify({ ...entry, at: Date.now() }));
    } catch { /* memory has it */ }
    return this.flush();
  }

  // Takes in what a tab left behind that is gone by now, or that does not get through.
  adopt(age = 5000) {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(`${this.box}/`))) {
      const { at, ...entry } = JSON.parse(localStorage.getItem(key) ?? "{}");
      if (Date.now() - at >= age) this.entries.set(key.slice(this.box.length + 1), entry);
    }
    return this.flush();
  }

  flush() {
    return (this.running ??= this.#sendAll().finally(() => (this.running = null)));
  }

  async #sendAll() {
    for (const [claim, entry] of this.entries) {
      const error = await this.send(entry).then(() => null, (error) => error);
      const isOver = !error || error.isRefused; // else it is tried again
      if (isOver && error) this.refused = ` An answer was refused: ${error.message}`;
      if (isOver) this.entries.delete(claim), localStorage.removeItem(`${this.box}/${claim}`);
      this.told(error);
      if (!isOver) return;
    }
  }
}
