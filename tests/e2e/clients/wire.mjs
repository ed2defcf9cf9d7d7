// What a client in JavaScript and the driver say to each other, and what all these clients have in common.
import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
export const hear = async () => {
  const { value, done } = await lines.next();
  return done ? { do: "close" } : JSON.parse(value);
};
export const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

export const setting = await hear();

/** Let the person sign in; returns the URL where the browser ended up. */
export const authorized = async (url) => {
  say({ authorize: url });
  return new URL((await hear()).callback);
};

/** One service, signed in to when it is first asked for something. What extends it says how to connect. */
export class Connection {
  memory = {};

  constructor(url) {
    this.url = new URL(url);
  }

  async obey(order) {
    if (order.do === "connect") {
      await this.client?.close();
      this.client = await this.connect(order.mode);
      return null;
    }
    this.client ??= await this.connect();
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
      case "expire": // These clients look at no clock: they refresh when the server refuses the token.
        this.memory.tokens.access_token = "expired";
        return null;
      default:
        throw new Error(order.do);
    }
  }
}

/** Obey the driver until it goes. */
export const serve = async (Kind) => {
  const connections = new Map();
  for (let order = await hear(); order.do !== "close"; order = await hear()) {
    try {
      if (!connections.has(order.url)) connections.set(order.url, new Kind(order.url));
      say({ result: await connections.get(order.url).obey(order) });
    } catch (error) {
      // An OAuth error says in fields of its own what the server said.
      say({ error: [error.name, error.message, error.error, error.error_description].filter(Boolean).join(": ") });
    }
  }
  await Promise.all([...connections.values()].map((connection) => connection.client?.close()));
  process.exit(0);
};
