"""The scripts of the panel and of OHIF's page: what is done with an answer, and the button that opens it."""

from typing import Final

PANEL_SCRIPT: Final = """"use strict";
(() => {
  const PAUSE_MS = 500;
  const part = (id) => document.getElementById(id);
  const form = part("ask");
  if (!form) return;
  const LABELS = [
    ["text", "Answer"], ["diagnosis", "Diagnosis"], ["confidence", "Confidence (not calibrated)"],
    ["conclusion", "Conclusion"], ["target", "Outlined"], ["area_mm2", "Area, mm2"],
    ["area_px", "Area, pixels"], ["volume_ml", "Volume, mL"],
    ["ejection_fraction_percent", "Ejection fraction, %"], ["remarks", "Remarks"],
  ];
  let following = 0;

  const say = (words, isBad) => {
    part("state").textContent = words;
    part("state").className = isBad ? "bad" : "";
  };

  const add = (name, value) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    const words = Array.isArray(value) ? value.join(" ") : String(value);
    text.textContent = words.replaceAll("[SEG]", "outlined");
    part("said").append(term, text);
  };

  const clear = () => {
    part("said").replaceChildren();
    part("links").hidden = true;
    part("deliver").hidden = true;
  };

  const show = (found) => {
    clear();
    say(found.reason ? `${found.progress} ${found.reason}` : found.progress, found.state === "CANCELED");
    if (!found.is_over) return;
    for (const [key, name] of LABELS) if (found.answer[key] !== undefined) add(name, found.answer[key]);
    if (found.model_version) add("Model", `${found.model} ${found.model_version}`);
    for (const sent of found.deliveries) add(sent.destination, sent.state.toLowerCase());
    part("overlay").href = found.viewer;
    part("links").hidden = found.objects.length === 0;
    part("deliver").hidden = !found.can_be_sent;
    part("deliver").dataset.url = found.url;
  };

  const call = async (address, options) => {
    try {
      const answer = await fetch(address, options);
      const content = await answer.json();
      if (answer.ok) return content;
      say(`${content.error}. ${content.advice}`, true);
    } catch {
      say("The node does not answer: try again.", true);
    }
    return null;
  };

  const follow = async (address) => {
    const mine = ++following;
    for (;;) {
      const found = await call(address);
      if (found === null || mine !== following) return;
      show(found);
      if (found.is_over) return;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  };

  const post = (address, content) => call(address, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clear();
    say("Asking.");
    const wanted = { study: document.body.dataset.study, question: part("question").value };
    if (part("series").value) wanted.series = part("series").value;
    if (part("send") && part("send").checked) wanted.send = true;
    const made = await post("/api/ask", wanted);
    if (made !== null) await follow(made.url);
  });
  part("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    form.requestSubmit();
  });
  for (const each of document.querySelectorAll(".suggestion")) {
    each.addEventListener("click", () => {
      part("question").value = each.textContent;
      part("question").focus();
    });
  }
  part("deliver").addEventListener("click", async () => {
    const sent = await post(`${part("deliver").dataset.url}/send`, {});
    if (sent !== null) show(sent);
  });
})();
"""

VIEWER_SCRIPT: Final = """"use strict";
(() => {
  // A SEG that a link opens gives its viewport to the images; what the old viewport still waited for then
  // fails, and OHIF 3.13 tells the reader that something went wrong, though nothing did.
  const IS_REPLACED = /^The stack viewport has been destroyed/;
  for (const kind of ["error", "unhandledrejection"]) {
    window.addEventListener(kind, (event) => {
      const told = event.reason ?? event.error;
      if (!IS_REPLACED.test(told?.message ?? "")) return;
      event.stopImmediatePropagation();
      event.preventDefault();
    }, true);
  }
})();
(() => {
  const LOOK_MS = 500;
  const button = document.createElement("button");
  const panel = document.createElement("iframe");
  button.type = "button";
  button.id = "sim4seg-ask";
  button.textContent = "Ask";
  button.title = "Ask the model about this study";
  panel.title = "Ask about this study";
  Object.assign(button.style, {
    position: "fixed", left: "12px", bottom: "12px", zIndex: "50", padding: "6px 18px", borderRadius: "6px",
    border: "1px solid #a0a0a0", background: "#262626", color: "#fff", font: "15px system-ui, sans-serif",
    cursor: "pointer",
  });
  Object.assign(panel.style, {
    position: "fixed", left: "0", top: "48px", bottom: "56px", height: "calc(100% - 104px)",
    width: "min(400px, 100%)", border: "1px solid #a0a0a0", background: "#fff", zIndex: "50",
  });

  const study = () => (/^\\/(viewer|segmentation)/.test(location.pathname)
    ? new URLSearchParams(location.search).get("StudyInstanceUIDs") : null);

  const open = (isOpen) => {
    panel.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
    button.textContent = isOpen ? "Close" : "Ask";
    if (!isOpen) panel.removeAttribute("src");
    else panel.src = `/ask?StudyInstanceUIDs=${encodeURIComponent(study())}`;
  };

  let shown = null;
  const look = () => {
    if (study() === shown) return;
    shown = study();
    button.hidden = shown === null;
    open(false);
  };

  button.addEventListener("click", () => open(panel.hidden));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden) open(false);
  });
  button.hidden = true;
  open(false);
  document.body.append(panel, button);
  look();
  setInterval(look, LOOK_MS);  // OHIF changes the address without loading a page
})();
"""
