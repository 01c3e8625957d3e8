// The pages in a real browser, from an empty home to a Live Model, in both languages' texts, on a wide
// screen and a phone, in light and dark. Every page passes axe.
//
// usage: node pages.mjs   (from anywhere; builds nothing)
//   TENON, STANDIN   the binaries            [target/release/tenon, target/release/tenon-standin]
//   CHROMIUM         the browser             [/usr/bin/chromium]
//   SHOTS            where screenshots go    [a temporary directory]

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { chromium } from "playwright-core";

const ROOT = resolve(import.meta.dirname, "../../..");
const { TENON = join(ROOT, "target/release/tenon"), STANDIN = join(ROOT, "target/release/tenon-standin"), CHROMIUM = "/usr/bin/chromium" } = process.env;
const work = mkdtempSync(join(tmpdir(), "tenon-pages-"));
const shots = process.env.SHOTS ?? join(work, "shots");
mkdirSync(shots, { recursive: true });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"];
const processes = [];
let passed = 0;

/** Starts a program and waits for the address that it prints. */
function start(program, args, home = "home") {
  const child = spawn(program, args, { env: { ...process.env, TENON_HOME: join(work, home), TENON_MAX_SHARD_SIZE: "400000" }, stdio: ["ignore", "pipe", "pipe"] });
  processes.push(child);
  return new Promise((found, failed) => {
    let text = "";
    const heard = (part) => {
      text += part;
      const address = /http:\/\/[\w.:[\]]+/.exec(text);
      if (address) found(address[0].replace(/\/$/, ""));
    };
    child.stdout.on("data", heard);
    child.stderr.on("data", (part) => (text += part));
    child.on("exit", (code) => failed(new Error(`${program} ended with ${code}: ${text}`)));
  });
}

const problems = [];

async function newPage(browser, options = {}) {
  const context = await browser.newContext({ locale: "en-GB", timezoneId: "UTC", viewport: { width: 1440, height: 900 }, reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(`script: ${error.message}`));
  page.on("console", (message) => {
    // An answer of 4xx that a test asks for is noted by the browser too.
    if (message.type() === "error" && !/status of 4\d\d/.test(message.text())) problems.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(page.home) && !request.url().startsWith("data:")) problems.push(`asked ${request.url()}`);
  });
  return page;
}

/** What axe finds that is serious. */
async function accessible(page, name) {
  const found = await page.evaluate(`(() => { ${axe}; return axe.run(document, { resultTypes: ["violations"] }); })()`);
  const serious = found.violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  assert.deepEqual(serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`), [], `axe on ${name}`);
  assert.ok(found.passes.length > 5, `axe looked at ${name}`);
}

async function shot(page, name) {
  await page.mouse.move(0, 0);
  await page.screenshot({ path: join(shots, `${name}.png`) });
}

/** A page as it should be: its heading, nothing wider than the screen, axe, a picture. */
async function look(page, hash, heading, name) {
  await page.goto(`${page.home}/#/${hash}`);
  await page.getByRole("heading", { level: 1, name: heading }).waitFor();
  await page.waitForLoadState("networkidle").catch(() => {});
  await settled(page, name);
}

async function settled(page, name) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 0, `${name} is ${wide} pixels wider than the screen`);
  await accessible(page, name);
  await shot(page, name);
}

async function step(name, run) {
  process.stdout.write(`${name} ... `);
  await run();
  passed += 1;
  console.log("ok");
}

async function main() {
  const models = join(work, "models");
  cpSync(join(ROOT, "fixtures/kjv-llama/adapter-lora"), join(models, "spoilt"), { recursive: true });
  const server = await start(TENON, ["serve", "--listen", "127.0.0.1:0", "--allow-path", join(ROOT, "fixtures/kjv-llama"), "--allow-path", models]);
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
  const page = await newPage(browser);
  page.home = server;
  const dialog = page.getByRole("dialog");
  const row = (name) => page.getByRole("row").filter({ hasText: name });

  await step("a newcomer is told what to do first, on every page", async () => {
    for (const [hash, heading] of [["complete", "Complete Models"], ["customized", "Customized Models"], ["base", "Base Models"], ["live", "Live Models"], ["environments", "Deployment Environments"], ["results", "Results"], ["jobs", "Jobs"]]) {
      await look(page, hash, heading, `empty-${hash}`);
      await page.getByRole("heading", { level: 2, name: /yet$/ }).waitFor();
    }
  });

  await step("a Base Model is registered from an allowed path, and from no other", async () => {
    await page.goto(`${server}/#/complete`);
    await page.getByRole("main").getByRole("link", { name: "Register Base Model" }).click();
    await page.getByRole("button", { name: "Register Base Model" }).first().click();
    await dialog.getByLabel("Directory").fill("/etc");
    await dialog.getByRole("button", { name: "Add" }).click();
    await dialog.getByRole("alert").getByText("--allow-path").waitFor();
    await dialog.getByLabel("Directory").fill(join(ROOT, "fixtures/kjv-llama/base"));
    await dialog.getByRole("button", { name: "kjv-llama/base", exact: true }).click();
    await dialog.getByText("LlamaForCausalLM").waitFor();
    await dialog.getByLabel("Name (optional)").fill("kjv-llama");
    await settled(page, "base-add");
    await dialog.getByRole("button", { name: "Add" }).click();
    await row("kjv-llama").waitFor();
  });

  await step("a template with a mistake is refused where it is, and a right one attached", async () => {
    await page.getByRole("button", { name: "Attach template: kjv-llama" }).click();
    await dialog.getByLabel("Name of the file").fill("Modelfile");
    await dialog.getByLabel("Text", { exact: true }).fill("{{ if .System }}{{ .System }}\n{{ end \n{{ .Prompt }}");
    await dialog.getByRole("button", { name: "Check and attach" }).click();
    await dialog.getByRole("alert").getByText(/Line \d+, column \d+/).first().waitFor();
    assert.equal(await dialog.getByLabel("Text", { exact: true }).getAttribute("aria-invalid"), "true");
    await settled(page, "template-wrong");
    await dialog.getByLabel("Text", { exact: true }).fill("{{ if .System }}{{ .System }}\n{{ end }}{{ .Prompt }}");
    await dialog.getByRole("button", { name: "Check and attach" }).click();
    await dialog.waitFor({ state: "detached" });
    await row("kjv-llama").getByText("Modelfile").waitFor();
    await page.getByRole("button", { name: "Template: kjv-llama" }).click();
    await dialog.getByRole("button", { name: "Check the attached one" }).click();
    await dialog.getByText("Modelfile is right").waitFor();
    await settled(page, "template-check");
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "detached" });
  });

  await step("an adapter becomes a Customized Model", async () => {
    await page.goto(`${server}/#/customized`);
    await page.getByRole("button", { name: "Add adapter" }).first().click();
    await dialog.getByLabel("Directory").fill(join(ROOT, "fixtures/kjv-llama/adapter-lora"));
    await dialog.getByLabel("Name of the training (optional)").fill("psalms");
    await dialog.getByText("rank 8").waitFor();
    await settled(page, "customized-add");
    await dialog.getByRole("button", { name: "Add" }).click();
    await row("kjv-llama_psalms_").waitFor();
  });

  let model;
  await step("it is saved, with live progress", async () => {
    await page.evaluate(() => {
      window.states = [];
      const source = new EventSource("api/v1/events");
      source.addEventListener("job", (event) => window.states.push(JSON.parse(event.data)));
      return new Promise((open) => source.addEventListener("hello", open));
    });
    await page.getByRole("button", { name: /^Save: / }).click();
    await accessible(page, "save dialog");
    await shot(page, "customized-save");
    await dialog.getByRole("button", { name: "Save" }).click();
    await row("kjv-llama_psalms_").getByRole("link", { name: "Show Complete Model" }).waitFor();
    const states = await page.evaluate(() => window.states.map(({ state }) => state));
    assert.ok(states.length > 1 && states[0] !== "done" && states.at(-1) === "done", states.join(" "));
    await settled(page, "customized");
    await page.goto(`${server}/#/complete`);
    const link = page.getByRole("link", { name: /^kjv-llama_psalms_\d+_\w{4}_s_\w{4}$/ });
    model = await link.textContent();
    await look(page, "complete", "Complete Models", "complete");
  });

  await step("its Model Card is read, with its chart, and its files are verified", async () => {
    await page.getByRole("link", { name: `Model Card: ${model}` }).click();
    await page.getByRole("heading", { level: 1, name: model }).waitFor();
    await page.locator(".card svg rect").first().waitFor({ state: "attached" });
    await page.getByRole("button", { name: "Verify files" }).click();
    await page.getByText(/All \d+ files are as they were saved/).waitFor();
    await page.waitForLoadState("networkidle").catch(() => {});
    await settled(page, "card");
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "config.json", exact: true }).click()]);
    assert.ok(JSON.parse(readFileSync(await download.path(), "utf8")).architectures.length > 0);
  });

  let ollama;
  await step("the catalogue is compared with the disk, and follows it where it must", async () => {
    await page.goto(`${server}/#/complete`);
    await page.getByRole("button", { name: "Check", exact: true }).click();
    await dialog.getByText("As they should be: 1. Nothing else was found.").waitFor();
    assert.equal(await dialog.getByRole("button", { name: "Repair" }).count(), 0);
    await page.keyboard.press("Escape");
    const [{ name }] = await page.evaluate(async () => (await (await fetch("api/v1/complete-models")).json()).items);
    const there = join(work, "home/complete", name);
    renameSync(there, join(work, "aside"));
    await page.getByRole("button", { name: "Check", exact: true }).click();
    await dialog.getByRole("heading", { name: "Not there" }).waitFor();
    await settled(page, "check");
    await dialog.getByRole("button", { name: "Repair" }).click();
    await row(name).waitFor({ state: "detached" });
    renameSync(join(work, "aside"), there);
    await page.getByRole("button", { name: "Check", exact: true }).click();
    await dialog.getByRole("heading", { name: "Not listed" }).waitFor();
    await dialog.getByRole("button", { name: "Repair" }).click();
    await row(name).waitFor();
  });

  await step("a Deployment Environment is added and tested", async () => {
    ollama = await start(STANDIN, ["--port", "0"]);
    await page.goto(`${server}/#/environments`);
    await page.getByRole("button", { name: "Add environment" }).first().click();
    await dialog.getByLabel("Name", { exact: true }).fill("workshop");
    await dialog.getByLabel("Address").fill(ollama);
    await dialog.getByText("More", { exact: true }).click();
    await dialog.getByLabel("Options of its kind").fill("no-such=1");
    await dialog.getByRole("button", { name: "Add" }).click();
    await dialog.getByRole("alert").waitFor();
    await dialog.getByLabel("Options of its kind").fill("uploads=2");
    await settled(page, "environment-add");
    await dialog.getByRole("button", { name: "Add" }).click();
    await page.getByRole("button", { name: "Test: workshop" }).click();
    await row("workshop").getByText("Answers").waitFor();
    await look(page, "environments", "Deployment Environments", "environments");
  });

  await step("it is deployed with q4_K_M, as the dialog says", async () => {
    await page.goto(`${server}/#/complete`);
    await page.getByRole("button", { name: `Deploy: ${model}` }).click();
    await dialog.getByText("one GGUF in q4_K_M").waitFor();
    const choices = await dialog.getByRole("radio").evaluateAll((inputs) => inputs.map((input) => input.value));
    assert.deepEqual(choices, ["no_quantization", "q8_0", "q4_K_M", "q4_K_S"]);
    await dialog.getByText("What will be sent").waitFor();
    await dialog.getByRole("radio", { name: /q4_K_M/ }).check();
    await dialog.getByText("one GGUF in q4_K_M").waitFor();
    assert.match(await dialog.locator("pre.source").first().textContent(), /\.Prompt/);
    await settled(page, "deploy");
    await dialog.getByRole("button", { name: "Deploy" }).click();
    await dialog.waitFor({ state: "detached" });
    await page.goto(`${server}/#/live`);
    await row("workshop").getByText("Live", { exact: true }).waitFor({ timeout: 60_000 });
    assert.ok((await row("workshop").textContent()).includes("q4_K_M"));
    await look(page, "live", "Live Models", "live");
    await look(page, "jobs", "Jobs", "jobs");
    await page.getByRole("button", { name: /^Log: / }).first().click();
    await dialog.getByText("Done").first().waitFor();
    await settled(page, "jobs-log");
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "detached" });
    await page.goto(`${server}/#/complete/${model}`);
    const remove = page.getByRole("button", { name: "Remove this file: q4_K_M" });
    await remove.waitFor();
    await settled(page, "card-deployed");
    await remove.click();
    await page.getByText("None is kept yet.").waitFor();
    await page.reload();
    await page.getByText("None is kept yet.").waitFor();
  });

  await step("an adapter is sent from this computer, and refused in place where it is none", async () => {
    const adapter = join(ROOT, "fixtures/kjv-llama/adapter-lora");
    const files = ["adapter_config.json", "adapter_model.safetensors"].map((name) => join(adapter, name));
    await page.goto(`${server}/#/customized`);
    await page.getByRole("button", { name: "Add adapter" }).first().click();
    await dialog.getByRole("radio", { name: /On this computer/ }).check();
    await dialog.getByLabel("Files", { exact: true }).setInputFiles(files.slice(0, 1));
    await dialog.getByLabel("Name of the training (optional)").fill("proverbs");
    await dialog.getByRole("button", { name: "Add" }).click();
    await dialog.getByRole("alert").getByText("adapter_model.safetensors").waitFor();
    await settled(page, "customized-upload");
    await dialog.getByLabel("Files", { exact: true }).setInputFiles(files);
    await dialog.getByRole("button", { name: "Add" }).click();
    await dialog.waitFor({ state: "detached" });
    await row("kjv-llama_proverbs_").waitFor();
  });

  await step("adapters are merged, a GGUF is made; what came out is taken away, registered and deleted", async () => {
    await page.goto(`${server}/#/results`);
    await page.getByRole("button", { name: "Merge", exact: true }).click();
    await dialog.getByRole("button", { name: "Add an adapter" }).click();
    await dialog.getByLabel("Weight").last().fill("0.5");
    await dialog.getByLabel("Name of the result").fill("two voices");
    await dialog.getByRole("button", { name: "Begin" }).click();
    assert.equal(await dialog.getByLabel("Name of the result").evaluate((input) => input.validity.patternMismatch), true);
    await dialog.getByLabel("Name of the result").fill("two-voices");
    await dialog.getByText("What will be made").waitFor();
    await dialog.getByText("are free").waitFor();
    await settled(page, "make-merge");
    await dialog.getByRole("button", { name: "Begin" }).click();
    await row("two-voices").waitFor();
    await page.getByRole("button", { name: "Make GGUF" }).click();
    await dialog.getByLabel("Name of the result").fill("whole");
    await dialog.getByText("What will be made").waitFor();
    await dialog.getByText("More options").click();
    await dialog.getByLabel("Types by name").fill("attn_v=q9_0");
    await dialog.getByText("expected one of f32").waitFor();
    await dialog.getByLabel("Types by name").fill("attn_v=q8_0");
    await dialog.getByLabel("Types of tensors").selectOption("ollama");
    await dialog.getByText("expected one of f32").waitFor({ state: "detached" });
    await dialog.getByText("What will be made").waitFor();
    await settled(page, "make-gguf");
    await dialog.getByRole("button", { name: "Begin" }).click();
    await row("whole.gguf").waitFor();
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Download: whole.gguf" }).click()]);
    assert.equal(readFileSync(await download.path()).subarray(0, 4).toString(), "GGUF");
    await page.getByRole("button", { name: "Register: two-voices" }).click();
    await dialog.getByText("LlamaForCausalLM").waitFor();
    await dialog.getByRole("button", { name: "Add" }).click();
    await dialog.waitFor({ state: "detached" });
    await look(page, "results", "Results", "results");
    await page.getByRole("button", { name: "Delete: two-voices" }).click();
    await dialog.getByRole("button", { name: "Delete" }).click();
    await dialog.getByRole("alert").getByText("Base Model two-voices is registered there").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Delete: whole.gguf" }).click();
    await dialog.getByRole("button", { name: "Delete" }).click();
    await row("whole.gguf").waitFor({ state: "detached" });
    await page.getByRole("button", { name: "Blend", exact: true }).click();
    await dialog.getByLabel("mergekit configuration").waitFor();
    await settled(page, "make-blend");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Combine", exact: true }).click();
    await dialog.getByLabel("Several adapters").selectOption("ties");
    await dialog.getByLabel("Share that is kept").waitFor();
    await dialog.getByLabel("Name of the result").fill("both");
    await dialog.getByText("What will be made").waitFor();
    await settled(page, "make-combine");
    await page.keyboard.press("Escape");
    await page.goto(`${server}/#/jobs`);
    await page.getByRole("button", { name: "Log: whole.gguf" }).click();
    await dialog.getByText(/% error · .* dB · .* bits a weight/).waitFor();
    await settled(page, "jobs-gguf");
    await page.keyboard.press("Escape");
  });

  await step("a Saving that fails says why and what to do, and can be tried again", async () => {
    const weights = join(models, "spoilt/adapter_model.safetensors");
    await page.goto(`${server}/#/customized`);
    await page.getByRole("button", { name: "Add adapter" }).first().click();
    await dialog.getByLabel("Directory").fill(join(models, "spoilt"));
    await dialog.getByRole("button", { name: "Add" }).click();
    await row("kjv-llama_spoilt_").waitFor();
    const bytes = readFileSync(weights);
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(weights, bytes);
    await page.getByRole("button", { name: /^Save: kjv-llama_spoilt_/ }).click();
    await dialog.getByRole("button", { name: "Save" }).click();
    await row("kjv-llama_spoilt_").getByText("Failed").waitFor();
    await page.getByRole("status").getByRole("link", { name: "See why" }).click();
    await look(page, "jobs", "Jobs", "jobs-failed");
    const failed = row("kjv-llama_spoilt_").filter({ hasText: "Failed" });
    assert.match(await failed.textContent(), /adapter_model\.safetensors .* register it anew/);
    copyFileSync(join(ROOT, "fixtures/kjv-llama/adapter-lora/adapter_model.safetensors"), weights);
    await page.getByRole("button", { name: /^Retry: kjv-llama_spoilt_/ }).click();
    await row("kjv-llama_spoilt_").getByText("Done").waitFor();
    const [again] = await page.evaluate(async () => (await (await fetch("api/v1/complete-models?q=spoilt")).json()).items);
    await page.goto(`${server}/#/complete`);
    await page.getByRole("button", { name: `Delete: ${again.name}` }).click();
    await dialog.getByRole("button", { name: "Delete" }).click();
    await dialog.waitFor({ state: "detached" });
  });

  await step("ten thousand models with long names are turned over page by page, on a phone too", async () => {
    const item = (n) => ({ name: `${"a-very-long-name-of-a-base-model".repeat(3)}_${"training".repeat(8)}_20260309_${n}_s_0000`.slice(0, 200), base: "a-very-long-name-of-a-base-model".repeat(3), customized: `${"training".repeat(20)}_${n}`, saving: "s", created: new Date().toISOString(), bytes: 16e12, state: "whole", live_models: 0, model: { architecture: "Qwen3NextMoeForConditionalGeneration", parameters: 1e12, dtype: "BF16", bytes: 16e12 } });
    for (const options of [{}, { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 }]) {
      const other = await newPage(browser, options);
      other.home = server;
      const asked = [];
      await other.route(/api\/v1\/complete-models\?/, (route) => {
        const query = new URL(route.request().url()).searchParams;
        asked.push(query.toString());
        const offset = Number(query.get("offset"));
        const items = Array.from({ length: 50 }, (_, n) => item(offset + n));
        return route.fulfill({ json: { items, total: 10_000, offset, limit: 50 } });
      });
      await look(other, "complete", "Complete Models", options.viewport ? "phone-many" : "many");
      await other.getByText("1–50 of 10,000").waitFor();
      await other.getByRole("button", { name: "Next" }).click();
      await other.getByText("51–100 of 10,000").waitFor();
      await other.getByRole("searchbox").fill("training");
      await other.getByText("1–50 of 10,000").waitFor();
      assert.ok(asked.at(-1).includes("q=training") && asked.at(-1).includes("offset=0"), asked.at(-1));
      await other.context().close();
    }
  });

  await step("a server that goes away is missed, and found again when it is back", async () => {
    const first = await start(TENON, ["serve", "--listen", "127.0.0.1:0"], "other");
    const other = await newPage(browser);
    other.home = first;
    await other.goto(`${first}/#/jobs`);
    await other.getByRole("heading", { level: 2, name: "No job yet" }).waitFor();
    const expected = problems.length;
    const child = processes.at(-1);
    child.removeAllListeners("exit");
    child.kill("SIGKILL");
    await other.getByRole("alert").getByText("The server does not answer").waitFor();
    await settled(other, "server-gone");
    await other.getByRole("link", { name: "Base Models" }).click();
    await other.getByRole("button", { name: "Try again" }).waitFor();
    await start(TENON, ["serve", "--listen", new URL(first).host], "other");
    await other.getByText("The server answers again").waitFor();
    await other.getByRole("heading", { level: 2, name: "No Base Model yet" }).waitFor();
    assert.equal(await other.getByRole("alert").count(), 0);
    await other.context().close();
    // The browser notes each request that nobody answered.
    const refused = problems.splice(expected);
    assert.ok(refused.every((problem) => /ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)/.test(problem)), refused.join("\n"));
  });

  await step("on a phone, in German, in the dark, every page is as readable", async () => {
    for (const [name, options] of [["phone", { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 }], ["dark", { colorScheme: "dark" }], ["phone-dark-de", { viewport: { width: 390, height: 844 }, colorScheme: "dark", locale: "de-DE" }]]) {
      const other = await newPage(browser, options);
      other.home = server;
      for (const hash of ["complete", "customized", "base", "live", "environments", "results", "jobs"]) await look(other, hash, /./, `${name}-${hash}`);
      await look(other, `complete/${model}`, model, `${name}-card`);
      if (name === "phone-dark-de") {
        await other.getByRole("button", { name: "Menü" }).click();
        await other.getByRole("button", { name: "Bereitstellen" }).waitFor();
        await settled(other, `${name}-menu`);
      }
      await other.getByRole("main").getByRole("button", { name: /^(Deploy|Bereitstellen)$/ }).click();
      await other.getByRole("dialog").locator(".facts").waitFor();
      await settled(other, `${name}-deploy`);
      await other.context().close();
    }
  });

  await step("the pages are used with the keyboard alone", async () => {
    await page.goto(`${server}/#/jobs`);
    await page.reload();
    await page.getByRole("heading", { level: 1, name: "Jobs" }).waitFor();
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
    await page.getByRole("link", { name: "Complete Models" }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("button", { name: `Delete: ${model}` }).focus();
    await page.keyboard.press("Enter");
    await dialog.waitFor();
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "detached" });
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), `Delete: ${model}`, "where it was");
  });

  await step("texts are there in both languages", async () => {
    assert.deepEqual(await page.evaluate(async () => (await import("./script/texts.js")).missing()), []);
    await page.getByRole("combobox", { name: "Language" }).selectOption("de");
    await page.getByText("Ganze Modelle, aus Adapter").waitFor();
    assert.equal(await page.evaluate(() => document.documentElement.lang), "de");
    await page.getByRole("combobox", { name: "Sprache" }).selectOption("en");
  });

  await step("the Complete Model is deleted, and the Live Model stays", async () => {
    await page.getByRole("button", { name: `Delete: ${model}` }).click();
    await dialog.getByText(model).waitFor();
    await dialog.getByText("Live Models of it: they go on serving").waitFor();
    await settled(page, "delete");
    await dialog.getByRole("button", { name: "Delete" }).click();
    await page.getByRole("heading", { level: 2, name: "No Complete Model yet" }).waitFor();
    await page.goto(`${server}/#/live`);
    await row("workshop").getByText("deleted since").waitFor();
    await page.getByRole("button", { name: /^Check: / }).click();
    await row("workshop").getByText("Live", { exact: true }).waitFor();
    await settled(page, "live-after-delete");
  });

  await step("the API is described without other hosts", async () => {
    await page.goto(`${server}/docs`);
    await page.getByRole("heading", { level: 1 }).waitFor();
    await page.locator("details.operation summary").first().click();
    await settled(page, "docs");
    const list = page.locator("#list_live_models");
    await page.getByRole("searchbox").fill("live-models list");
    await list.locator("summary").click();
    await list.getByLabel("limit").fill("1");
    await list.getByRole("button", { name: "Send" }).click();
    await list.getByText("200 OK").waitFor();
    assert.equal(JSON.parse(await list.locator("pre.answer").textContent()).limit, 1);
    await list.getByLabel("limit").fill("0");
    await list.getByRole("button", { name: "Send" }).click();
    await list.getByText("400 Bad Request").waitFor();
    await settled(page, "docs-tried");
    await page.getByRole("searchbox").fill("preview_template");
    const post = page.locator("#preview_template");
    await post.locator("summary").click();
    await post.getByLabel("Body").fill(JSON.stringify({ file: "Modelfile", text: "{{ .Prompt }}" }));
    await post.getByRole("button", { name: "Send" }).click();
    await post.getByText("200 OK").waitFor();
  });

  // Before the step whose point is what the browser refuses.
  assert.deepEqual(problems, [], "nothing failed in the browser, and nothing was asked of other hosts");

  await step("what strangers wrote on a card stays text", async () => {
    const hostile = "<img src=x onerror=alert(1)><script>alert(1)</script>";
    await page.route("**/card?format=fragment", (route) => route.fulfill({ contentType: "text/html", body: `<p>${hostile}</p><p onclick="alert(1)" style="color:red"><a href="javascript:alert(1)">x</a></p><svg onload="alert(1)"><script>alert(1)</script><foreignObject><p>y</p></foreignObject></svg><iframe src="/"></iframe>` }));
    await page.route(`**/complete-models/x`, (route) => route.fulfill({ json: { name: "x", base: "b", customized: "c", saving: "s", created: new Date().toISOString(), bytes: 1, state: "whole", live_models: 0, path: "/", manifest: {}, model: { architecture: "a", parameters: 1, dtype: "F32", bytes: 1 } } }));
    await page.route("**/complete-models/x/ggufs", (route) => route.fulfill({ json: { items: [] } }));
    await page.route("**/complete-models/x/files", (route) => route.fulfill({ json: { items: [] } }));
    let alerted = false;
    page.on("dialog", (box) => { alerted = true; box.dismiss(); });
    await page.goto(`${server}/#/complete/x`);
    await page.locator("article.card p").first().waitFor({ state: "attached" });
    const left = await page.locator("article.card").evaluate((card) => [...card.querySelectorAll("*")].map((element) => [element.localName, ...[...element.attributes].map(({ name, value }) => `${name}=${value}`)].join(" ")));
    assert.deepEqual(left, ["p", "p", "a", "svg"]);
    assert.equal(alerted, false);
  });

  await browser.close();
}

main()
  .then(() => 0, (error) => { console.log("failed"); console.error(error); return 1; })
  .then((code) => {
    for (const child of processes) child.kill("SIGTERM");
    if (code === 0) rmSync(work, { recursive: true, force: true });
    console.log(`${passed} passed, ${code} failed`);
    process.exit(code);
  });
