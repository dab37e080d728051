// The page of capture flags: ask by the form as it stands, and see who has taken the flags up.
// Without it the question is answered by what is saved, and the processes on the next load.
"use strict";
(function () {
  function show(target, html) {
    const holder = document.createElement("template");
    holder.innerHTML = html; // our own template's, escaped by the server
    target.replaceChildren(holder.content);
  }

  async function fetchText(url, options) {
    const response = await fetch(url, Object.assign({ credentials: "same-origin", redirect: "error" }, options));
    if (!response.ok) {
      throw new Error("the server answered " + response.status);
    }
    return response.text();
  }

  function wireQuestion(ask) {
    const form = document.getElementById(ask.dataset.auditAsk);
    const answer = ask.parentElement.querySelector(".audit-answer");
    const editable = form !== null && form.querySelector("[name=service_name]:not([type=hidden])") !== null;
    if (editable) {
      ask.querySelector("[data-audit-saved]").hidden = true;
      ask.querySelector("[data-audit-unsaved]").hidden = false;
    }
    let latest = 0;
    async function put() {
      const number = ++latest;
      answer.setAttribute("aria-busy", "true");
      let html;
      try {
        if (editable) {
          const data = new FormData(form);
          for (const [name, value] of new FormData(ask)) {
            data.set(name, value);
          }
          html = await fetchText(ask.action, { method: "POST", body: data });
        } else {
          const query = new URLSearchParams(new FormData(ask));
          query.set("fragment", "1");
          html = await fetchText(ask.action + "?" + query);
        }
      } catch (error) {
        html = null;
      }
      if (number !== latest) {
        return; // a later question is under way
      }
      answer.removeAttribute("aria-busy");
      if (html === null) {
        answer.textContent = "No answer came. Are you still logged in? Ask again, or load the page anew.";
      } else {
        show(answer, html);
      }
    }
    ask.addEventListener("submit", function (event) {
      event.preventDefault();
      put();
    });
    if (form !== null) {
      // An answer to what stands there no longer would mislead.
      form.addEventListener("change", function () {
        if (answer.childElementCount > 0 && ask.checkValidity()) {
          put();
        }
      });
    }
  }

  function wireUptake(panel) {
    const lines = panel.querySelector(".audit-lines");
    let rounds = 0;
    async function renew() {
      rounds += 1;
      if (!document.hidden) {
        try {
          const html = await fetchText(panel.dataset.auditUptake);
          // Whoever reads along with the keyboard must not lose the place.
          if (!lines.contains(document.activeElement)) {
            show(lines, html);
          }
        } catch (error) {
          // It stays as it was; the next round may fare better.
        }
      }
      const complete = lines.querySelector("[data-audit-complete]") !== null;
      setTimeout(renew, complete || rounds > 60 ? 15000 : 2000);
    }
    setTimeout(renew, 2000);
  }

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("[data-audit-ask]").forEach(wireQuestion);
    document.querySelectorAll("[data-audit-uptake]").forEach(wireUptake);
  });
})();
