import { Refused, ask } from "./api.js";
import { byId } from "./dom.js";

const form = byId("sign-in");
const key = byId("key");
const wrong = byId("wrong");

function told(error) {
  if (error instanceof Refused && error.status === 401) return "That is not the admin key.";
  if (error instanceof Refused) return [error.message, error.hint].filter(Boolean).join(" ");
  return "The proxy does not answer.";
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  wrong.textContent = "";
  key.removeAttribute("aria-invalid");
  try {
    await ask("session", { method: "POST", body: { key: key.value.trim() } });
    location.reload();
  } catch (error) {
    wrong.textContent = told(error);
    key.setAttribute("aria-invalid", "true");
    button.disabled = false;
    key.focus();
    key.select();
  }
});
