// A client on the MCP TypeScript SDK; `driver.py` says what it obeys.
import { createInterface } from "node:readline";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { UnauthorizedError } from "@modelcontextprotocol/sdk/client/auth.js";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const hear = async () => {
  const { value, done } = await lines.next();
  return done ? { do: "close" } : JSON.parse(value);
};
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

const setting = await hear();

class Connection {
  constructor(url) {
    this.url = new URL(url);
    this.memory = {};
    const memory = this.memory;
    this.provider = {
      redirectUrl: setting.redirect_uri,
      clientMetadata: {
        client_name: setting.client_name,
        redirect_uris: [setting.redirect_uri],
        token_endpoint_auth_method: "none",
      },
      state: () => (memory.state = crypto.randomUUID()),
      clientInformation: () => memory.client,
      saveClientInformation: (client) => void (memory.client = client),
      tokens: () => memory.tokens,
      saveTokens: (tokens) => void (memory.tokens = tokens),
      codeVerifier: () => memory.verifier,
      saveCodeVerifier: (verifier) => void (memory.verifier = verifier),
      redirectToAuthorization: async (authorizationUrl) => {
        say({ authorize: authorizationUrl.href });
        memory.callback = new URL((await hear()).callback).searchParams;
      },
    };
  }

  async open() {
    try {
      await this.connect();
    } catch (error) {
      if (!(error instanceof UnauthorizedError)) throw error;
      const { callback, state } = this.memory;
      if (!callback?.get("code")) throw new Error(`no code: ${callback?.get("error")}`);
      if (callback.get("state") !== state) throw new Error("the state is not the one that was sent");
      await this.transport.finishAuth(callback.get("code"));
      await this.connect();
    }
  }

  async connect() {
    this.client = new Client({ name: setting.client_name, version: "1" });
    this.transport = new StreamableHTTPClientTransport(this.url, { authProvider: this.provider });
    await this.client.connect(this.transport);
  }

  async obey(order) {
    switch (order.do) {
      case "tools":
        return (await this.client.listTools()).tools.map((tool) => tool.name);
      case "call": {
        const result = await this.client.callTool({ name: order.tool, arguments: order.arguments });
        return { text: result.content[0].text, failed: result.isError === true };
      }
      case "credentials": {
        const { access_token, refresh_token, scope } = this.memory.tokens;
        return { access_token, refresh_token, scope, client_id: this.memory.client.client_id };
      }
      case "expire": // This SDK looks at no clock: it refreshes when the server refuses the token.
        this.memory.tokens.access_token = "expired";
        return null;
      default:
        throw new Error(order.do);
    }
  }
}

const connections = new Map();
for (let order = await hear(); order.do !== "close"; order = await hear()) {
  try {
    if (!connections.has(order.url)) {
      const connection = new Connection(order.url);
      await connection.open();
      connections.set(order.url, connection);
    }
    say({ result: await connections.get(order.url).obey(order) });
  } catch (error) {
    say({ error: `${error.name}: ${error.message}` });
  }
}
process.exit(0);
