// What all pages but the sign-in have.

import { ask } from "./api.js";
import { byId, toast } from "./dom.js";

const leave = byId("sign-out");
if (leave) {
  leave.addEventListener("click", async () => {
    leave.disabled = true;
    try {
      await ask("session", { method: "DELETE" });
      location.assign("/ui/");
    } catch (error) {
      leave.disabled = false;
      toast(error.message, { bad: true });
    }
  });
}
