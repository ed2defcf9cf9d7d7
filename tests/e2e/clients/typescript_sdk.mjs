// A client on the MCP TypeScript SDK, of the 1.x or the 2.x line, as its argument says; `driver.py` says what it obeys.
import { authorized, Connection, serve, setting } from "./wire.mjs";

const secondLine = process.argv[2] === "2";
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = secondLine
  ? await import("@modelcontextprotocol/client")
  : {
      ...(await import("@modelcontextprotocol/sdk/client/index.js")),
      ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
      ...(await import("@modelcontextprotocol/sdk/client/auth.js")),
    };

class Sdk extends Connection {
  constructor(url) {
    super(url);
    const { memory } = this;
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
      discoveryState: () => memory.discovery,
      saveDiscoveryState: (discovery) => void (memory.discovery = discovery),
      redirectToAuthorization: async (url) => void (memory.callback = (await authorized(url.href)).searchParams),
    };
  }

  async connect(mode) {
    try {
      return await this.attempt(mode);
    } catch (error) {
      if (!(error instanceof UnauthorizedError)) throw error;
      const { callback, state } = this.memory;
      if (!callback?.get("code")) throw new Error(`no code: ${callback?.get("error")}`);
      if (callback.get("state") !== state) throw new Error("the state is not the one that was sent");
      await this.transport.finishAuth(secondLine ? callback : callback.get("code"));
      return this.attempt(mode);
    }
  }

  async attempt(mode) {
    const client = new Client({ name: setting.client_name, version: "1" }, mode && { versionNegotiation: { mode } });
    this.transport = new StreamableHTTPClientTransport(this.url, { authProvider: this.provider });
    await client.connect(this.transport);
    return client;
  }
}

await serve(Sdk);
