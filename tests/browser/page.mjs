// Drives the page in a real browser as a person would: `node page.mjs PAGE_URL OTLP_HTTP_URL LOCKED_URL TOKEN`.
//
// tests/e2e/browser.rs starts the program, sends traffic and runs this. With SCREENSHOTS=DIRECTORY the pictures of the
// documentation are made on the way.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [base, otlp, locked, token] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const RANGE = "from=now-15m";

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

/** A page whose every complaint, and every request to elsewhere, is a failure. */
async function open(path, { width = 1440, height = 900, colorScheme = "light", origin = base, tolerate = /^$/ } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, acceptDownloads: true, timezoneId: "UTC", reducedMotion: "reduce" });
  const page = await context.newPage();
  page.complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !tolerate.test(message.text())) page.complaints.push(message.text());
  });
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(origin)) page.complaints.push(`asked ${request.url()}`);
  });
  page.setDefaultTimeout(15000);
  await page.goto(`${origin}/${path}`);
  return page;
}

async function close(page) {
  assert.deepEqual(page.complaints, [], "the console has complaints");
  await page.context().close();
}

const api = async (path) => {
  const response = await fetch(`${base}/api/v1${path}`);
  assert.equal(response.status, 200, path);
  return response.json();
};
const rows = (page) => page.locator("#panel tbody tr");
const chosen = (page) => new URL(page.url()).searchParams;
const loaded = async (page) => {
  await page.locator(".tiles[aria-busy=false]").waitFor();
  await page.locator("[data-chart=scatter] canvas").waitFor();
  await rows(page).first().waitFor();
};
/** Waits until `check` does not throw any more. */
async function eventually(check) {
  const end = Date.now() + 15000;
  for (;;) {
    try { return await check(); } catch (error) {
      if (Date.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
async function accessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(
    // The rows of a table are alike; hundreds of them take long.
    { include: [["body"]], exclude: [["#panel tbody tr:nth-child(n+12)"]] }, { resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const told = serious.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
  assert.deepEqual(told, [], `${what}: the accessibility check has serious findings`);
}
async function picture(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/page-${name}.png` });
}

const tests = {
  async "the tiles show the numbers of the API, and the charts are drawn"() {
    const page = await open(`?${RANGE}`);
    await loaded(page);
    const { data } = await api(`/code-exec-logs/stats?${RANGE}`);
    const tile = (name) => page.locator(".tile", { has: page.getByRole("heading", { name, exact: true }) }).locator("strong");
    await eventually(async () => assert.equal(await tile("Executions").getAttribute("title"), data.count.toLocaleString("en-US")));
    assert.equal(await tile("Time-outs").getAttribute("title"), data.timeouts.toLocaleString("en-US"));
    assert.match(await tile("Failed").textContent(), new RegExp(`^${(data.errorRate * 100).toFixed(data.errorRate < 0.1 ? 2 : 1)} %$`));
    assert.match(await tile("Estimated cost").textContent(), /^\$\d/);
    for (const chart of ["volume", "scatter"]) {
      const inked = await page.locator(`[data-chart=${chart}] canvas`).evaluate((canvas) =>
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0));
      assert.ok(inked, `${chart} is empty`);
    }
    assert.ok((await page.locator(".tile .spark polyline").count()) >= 8, "tiles have sparklines");
    await picture(page, "light");
    await accessible(page, "executions");
    await close(page);
  },

  async "a facet filters everything, and the address keeps it"() {
    const page = await open(`?${RANGE}`);
    await loaded(page);
    await page.locator(".facet button", { hasText: "e2b" }).click();
    assert.deepEqual(chosen(page).getAll("runtime"), ["e2b"]);
    const { data } = await api(`/code-exec-logs/stats?${RANGE}&runtime=e2b`);
    await eventually(async () => {
      const runtimes = await rows(page).locator("td:nth-child(3)").allTextContents();
      assert.deepEqual([...new Set(runtimes)], ["e2b"]);
      assert.equal(await page.locator("#tab-executions .tag").textContent(), data.count.toLocaleString("en-US"));
    });
    await page.reload();
    await page.getByRole("button", { name: "Remove filter Runtime e2b" }).click();
    assert.deepEqual(chosen(page).getAll("runtime"), []);
    await page.goBack();
    await page.getByRole("button", { name: "Remove filter Runtime e2b" }).waitFor();
    await close(page);
  },

  async "a time that is brushed on the scatter is the time that is shown"() {
    const page = await open(`?${RANGE}`);
    await loaded(page);
    const over = await page.locator("[data-chart=scatter] .u-over").boundingBox();
    const at = (part) => over.x + over.width * part;
    await page.mouse.move(at(0.6), over.y + 60);
    await page.mouse.down();
    await page.mouse.move(at(0.8), over.y + 80, { steps: 4 });
    await page.mouse.move(at(0.96), over.y + 80, { steps: 4 });
    await page.mouse.up();
    await page.getByRole("button", { name: "Remove chosen time" }).waitFor();
    const [from, to] = ["from", "to"].map((name) => chosen(page).get(name));
    assert.ok(from < to, `${from} ${to}`);
    const { count, data } = await api(`/code-exec-logs?${new URLSearchParams({ from, to, limit: 1000 })}`);
    assert.ok(count > 0, `nothing from ${from} to ${to}`);
    await eventually(async () => assert.equal(await rows(page).count(), Math.min(count, 500)));
    assert.ok(data.every(({ createdAt }) => createdAt >= from && createdAt < to));
    await page.getByRole("button", { name: "Remove chosen time" }).click();
    assert.equal(chosen(page).get("to"), null);
    await close(page);
  },

  async "the drawer tells all facts with their sources, and links to the trace"() {
    const page = await open(`?${RANGE}&outcome=error`);
    await loaded(page);
    const { data: [first, second] } = await api(`/code-exec-logs?${RANGE}&outcome=error&limit=2`);
    await rows(page).first().locator("button").click();
    const drawer = page.getByRole("dialog", { name: "Execution" });
    await drawer.getByText("from the workflow node around it").or(drawer.getByText("from its own span")).first().waitFor();
    const link = await drawer.getByRole("link", { name: "Open trace in SigNoz" }).getAttribute("href");
    assert.equal(link, `https://signoz.example/trace/${first.traceId}?spanId=${first.spanId}`);
    await drawer.getByText(first.id, { exact: true }).waitFor();
    await picture(page, "drawer");
    await accessible(page, "drawer");
    await page.keyboard.press("j");
    await drawer.getByText(second.id, { exact: true }).waitFor();
    for (let press = 0; press < 40; press += 1) await page.keyboard.press("Tab");
    // Between its last and first control focus visits the browser's own, never the page behind.
    assert.ok(await page.evaluate(() => document.activeElement === document.body || Boolean(document.activeElement.closest("dialog"))));
    await page.keyboard.press("Escape");
    // Escape closes the dialog, which is no dialog to anybody any more, before the page hears of it and takes it away.
    await page.locator("dialog.drawer").waitFor({ state: "detached" });
    assert.equal(chosen(page).get("row"), null);
    await close(page);
  },

  async "errors are grouped, and a group leads to its executions"() {
    const page = await open(`?${RANGE}&tab=errors`);
    const { data } = await api(`/code-exec-logs/errors?${RANGE}`);
    await eventually(async () => assert.equal(await rows(page).count(), data.length));
    assert.match(await rows(page).first().textContent(), new RegExp(`^${data[0].count.toLocaleString("en-US")}`));
    await accessible(page, "errors");
    await page.getByRole("button", { name: /^Latest/ }).first().click();
    await page.getByRole("dialog").getByText(data[0].sampleId, { exact: true }).waitFor();
    await close(page);
  },

  async "costs are shown by group and called estimated"() {
    const page = await open(`?${RANGE}&tab=cost`);
    const { total, data } = await api(`/code-exec-logs/stats?${RANGE}&groupBy=runtime`);
    const dearest = [...data].sort((a, b) => b.costUsd - a.costUsd)[0];
    await eventually(async () => assert.match(await rows(page).first().textContent(), new RegExp(`^${dearest.key}\\$`)));
    assert.ok(total.costUsd > 0);
    await page.getByRole("columnheader", { name: "Estimated cost" }).waitFor();
    await page.getByText("Not a bill.").waitFor();
    await page.getByRole("button", { name: "Code agent", exact: true }).click();
    await page.getByRole("columnheader", { name: "Code agent" }).waitFor();
    await picture(page, "cost");
    await accessible(page, "cost");
    await close(page);
  },

  async "the pipeline tells how every stage and reader is"() {
    const page = await open(`?${RANGE}&tab=pipeline`);
    for (const name of ["meter", "ledger"]) await page.getByRole("cell", { name, exact: true }).first().waitFor();
    await page.getByRole("button", { name: "The pipeline is well" }).waitFor();
    await accessible(page, "pipeline");
    await close(page);
  },

  async "the pipeline shows each rule for what leaves with what it did, also on a narrow screen"() {
    for (const width of [1440, 380]) {
      const page = await open(`?${RANGE}&tab=pipeline`, { width });
      const table = page.getByRole("table", { name: "What leaves by otlp" });
      await table.waitFor();
      const shown = async () => {
        const { data: { exporters: [{ rules }] } } = await api("/pipeline");
        assert.deepEqual(rules.map(({ rule }) => rule), ["drop_spans[0]", "hash_attributes[0]", "redact[0]", "redact[1]", "set_resource.deployment.environment.name"]);
        assert.ok(rules[0].count > 0 && rules[1].count > 0 && rules[2].count === 0, JSON.stringify(rules));
        const cells = (row) => row.locator("td").allTextContents();
        assert.deepEqual(await Promise.all((await table.locator("tbody tr").all()).map(cells)),
          rules.map(({ rule, says, count, counts }) => [rule + says, `${count.toLocaleString("en-US")} ${counts}`]));
      };
      await eventually(shown);
      // However long a pattern is, the heading and the counts are in sight.
      await page.getByRole("heading", { name: "What leaves by otlp" }).waitFor();
      const count = await table.locator("tbody td.number").first().boundingBox();
      assert.ok(count.x >= 0 && count.x + count.width <= width, JSON.stringify(count));
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wide <= 0, `${wide} pixels too wide at ${width}`);
      await table.scrollIntoViewIfNeeded();
      await picture(page, `leaving-${width}`);
      await accessible(page, "what leaves");
      await close(page);
    }
  },

  async "a row appears by itself while the page is live, and not in a filter it does not pass"() {
    const page = await open(`?${RANGE}`);
    const filtered = await open(`?${RANGE}&outcome=success`);
    for (const one of [page, filtered]) {
      await loaded(one);
      const stream = one.waitForResponse((response) => response.url().includes("/live"));
      await one.getByRole("button", { name: "Live" }).click();
      await stream;
    }
    const hex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    const send = async (success, message) => {
      const now = BigInt(Date.now()) * 1000000n;
      const span = {
        traceId: hex(16), spanId: hex(8), name: "code.execute", kind: 1, startTimeUnixNano: String(now - 5000000n), endTimeUnixNano: String(now),
        attributes: [{ key: "code.runtime", value: { stringValue: "vm2" } }, { key: "code.language", value: { stringValue: "bash" } }, { key: "code.success", value: { boolValue: success } },
          { key: "code.agent_id", value: { stringValue: message } }], status: success ? { code: 1 } : { code: 2, message },
      };
      const response = await fetch(`${otlp}/v1/traces`, { method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans: [span] }] }] }) });
      assert.equal(response.status, 200);
    };
    await send(false, "failed-while-live");
    await rows(page).first().getByText("failed-while-live").first().waitFor();
    await send(true, "succeeded-while-live");
    await rows(filtered).first().getByText("succeeded-while-live").waitFor();
    assert.equal(await filtered.getByText("failed-while-live").count(), 0);
    // Text from a span is text, whatever it looks like.
    await send(false, "<img src=x onerror=alert(1)><b>bold</b>");
    await rows(page).first().getByText("<b>bold</b>").first().waitFor();
    await close(page);
    await close(filtered);
  },

  async "exports hold exactly the rows of the filter"() {
    const page = await open(`?${RANGE}&runtime=e2b`);
    await loaded(page);
    const { data } = await api(`/code-exec-logs?${RANGE}&runtime=e2b&limit=1000`);
    const save = async (name) => {
      await page.getByText("Export").click();
      const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name }).click()]);
      return readFileSync(await download.path(), "utf8");
    };
    const lines = (await save("JSON lines")).trim().split("\n").map((line) => JSON.parse(line).id);
    assert.deepEqual(lines, data.map(({ id }) => id));
    const [head, ...csv] = (await save("CSV")).trim().split("\r\n");
    const column = head.split(",").indexOf("id");
    assert.ok(column >= 0);
    assert.equal(csv.length, data.length);
    assert.ok(csv.every((line, index) => line.includes(data[index].id)));
    await close(page);
  },

  async "dark colours are those of the system until chosen otherwise, and are kept"() {
    const page = await open(`?${RANGE}`, { colorScheme: "dark" });
    await loaded(page);
    const theme = () => page.evaluate(() => document.documentElement.dataset.theme);
    assert.equal(await theme(), "dark");
    await picture(page, "dark");
    await accessible(page, "dark");
    await page.getByRole("button", { name: "Light colours" }).click();
    assert.equal(await theme(), "light");
    await page.reload();
    await loaded(page);
    assert.equal(await theme(), "light");
    await close(page);
  },

  async "a narrow screen needs no scrolling sideways, and shows the same"() {
    const page = await open(`?${RANGE}`, { width: 380, height: 800 });
    await loaded(page);
    const wide = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok((await wide()) <= 0, `${await wide()} pixels too wide`);
    await picture(page, "narrow");
    await rows(page).first().locator("button").click();
    const box = await page.getByRole("dialog").boundingBox();
    assert.ok(box.width <= 380 && box.x >= 0);
    await accessible(page, "narrow");
    await close(page);
  },

  async "everything can be done with the keyboard"() {
    const page = await open(`?${RANGE}`);
    await loaded(page);
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.type), "search");
    await page.keyboard.type("timed out");
    await page.keyboard.press("Enter");
    await eventually(async () => {
      assert.equal(chosen(page).get("q"), "timed out");
      assert.match((await rows(page).locator("td:last-child").allTextContents()).join(), /^(,?[^,]*timed out[^,]*)+$/i);
    });
    await page.locator("#tab-executions").focus();
    await page.keyboard.press("ArrowRight");
    assert.equal(chosen(page).get("tab"), "errors");
    assert.equal(await page.evaluate(() => document.activeElement.id), "tab-errors");
    await page.keyboard.press("ArrowLeft");
    await rows(page).first().locator("button").focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.ok(await rows(page).first().locator("button").evaluate((button) => button === document.activeElement), "focus goes back to where it was");
    await close(page);
  },

  async "nothing in the time that is asked for says how to begin"() {
    const page = await open("?from=2001-01-01T00:00:00Z&to=2001-01-02T00:00:00Z&runtime=nothing");
    await page.getByRole("button", { name: "Clear all filters" }).waitFor();
    await page.getByRole("button", { name: "Clear all filters" }).click();
    await page.goto(`${base}/?from=now-15m&q=no-such-text`);
    await page.getByText("No execution matches.").waitFor();
    await close(page);
  },

  async "an API with tokens is asked for one, and a wrong one is asked for again"() {
    // The browser itself reports each 401 on the console.
    const page = await open(`?${RANGE}`, { origin: locked, tolerate: /status of 401/ });
    const field = page.getByLabel("Access token");
    await field.fill("wrong");
    await page.getByRole("button", { name: "Open" }).click();
    await eventually(async () => assert.equal(await field.inputValue(), ""));
    await field.fill(token);
    await page.getByRole("button", { name: "Open" }).click();
    await page.getByText("No executions in this time.").waitFor();
    await accessible(page, "begin");
    await close(page);
  },
};

let failed = 0;
for (const [name, test] of Object.entries(tests).filter(([name]) => name.includes(process.env.ONLY ?? ""))) {
  const began = Date.now();
  try {
    await test();
    console.log(`ok      ${name} (${Date.now() - began} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
