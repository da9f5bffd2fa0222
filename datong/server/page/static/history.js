// Conversations, in this browser only: localStorage, one entry each.
// {id, title, changed, messages: [{role, content, reasoning?, model?, stats?, end?, error?}]}

const PREFIX = "datong.chat.";

// crypto.randomUUID is there in secure contexts only.
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const create = () => ({ id: newId(), title: "", changed: Date.now(), messages: [] });

export function all() {
  const found = [];
  for (const name of Object.keys(localStorage).filter((name) => name.startsWith(PREFIX))) {
    try {
      found.push(JSON.parse(localStorage.getItem(name)));
    } catch {
      localStorage.removeItem(name);
    }
  }
  return found.sort((a, b) => b.changed - a.changed);
}

// False when older conversations had to go.
export function save(chat) {
  const text = JSON.stringify(chat);
  for (let whole = true; ; whole = false) {
    try {
      localStorage.setItem(PREFIX + chat.id, text);
      return whole;
    } catch {
      const oldest = all().filter((other) => other.id !== chat.id).pop();
      if (!oldest) return false;
      remove(oldest.id);
    }
  }
}

export const remove = (id) => localStorage.removeItem(PREFIX + id);

export const isOurs = (name) => name === null || name.startsWith(PREFIX);
