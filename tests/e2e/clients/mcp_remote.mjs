// mcp-remote, a process that speaks stdio to the MCP TypeScript SDK as to a desktop client, and HTTP to the gateway.
// `driver.py` says what it obeys.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { authorized, Connection, serve, setting } from "./wire.mjs";

const PROGRAM = fileURLToPath(new URL("node_modules/mcp-remote/dist/proxy.js", import.meta.url));

class Remote extends Connection {
  folder = mkdtempSync(join(tmpdir(), "mcp-remote-"));

  constructor(url) {
    super(url);
    process.on("exit", () => rmSync(this.folder, { recursive: true }));
  }

  /** One of the files that it keeps, as it stands there. */
  stored(name) {
    const found = readdirSync(this.folder, { recursive: true }).find((path) => path.endsWith(name));
    const path = join(this.folder, found);
    return { path, content: JSON.parse(readFileSync(path)) };
  }

  async connect(mode) {
    const transport = new StdioClientTransport({
      command: process.execPath,
      args: [PROGRAM, this.url.href, "--transport", "http-only", ...(mode ? ["--protocol", mode] : [])],
      env: {
        PATH: process.env.PATH,
        NODE_EXTRA_CA_CERTS: process.env.NODE_EXTRA_CA_CERTS,
        MCP_REMOTE_CONFIG_DIR: this.folder,
        BROWSER: "true", // A browser that shows nothing: the person takes the address from standard error.
        XDG_CURRENT_DESKTOP: "X-Generic",
      },
      stderr: "pipe",
    });
    const said = [];
    createInterface({ input: transport.stderr }).on("line", async (line) => {
      said.push(line);
      if (/^https:.*[?&]response_type=code/.test(line)) await fetch(await authorized(line));
    });
    const client = new Client({ name: setting.client_name, version: "1" });
    try {
      await client.connect(transport);
    } catch (error) {
      throw new Error(`${error.message}: ${said.join("\n")}`);
    }
    return client;
  }

  async obey(order) {
    switch (order.do) {
      case "credentials":
        this.memory = { tokens: this.stored("tokens.json").content, client: this.stored("client_info.json").content };
        return super.obey(order);
      case "expire": {
        const { path, content } = this.stored("tokens.json");
        writeFileSync(path, JSON.stringify({ ...content, expires_at: 1 }));
        return null;
      }
      default:
        return super.obey(order);
    }
  }
}

await serve(Remote);
