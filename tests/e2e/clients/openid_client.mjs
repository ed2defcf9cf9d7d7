// openid-client, a certified relying party, signs in by code or by device, or as a machine; the MCP TypeScript SDK
// has no more from it than a token. `driver.py` says what it obeys.
import { Client, extractWWWAuthenticateParams, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { processResourceDiscoveryResponse } from "oauth4webapi";
import * as openid from "openid-client";
import { authorized, Connection, serve, setting } from "./wire.mjs";

const DEVICE = "urn:ietf:params:oauth:grant-type:device_code";

class RelyingParty extends Connection {
  /** The authorization server that the service names when it refuses a request. */
  async issuer(refused) {
    refused ??= await fetch(this.url, { method: "POST" });
    const { resourceMetadataUrl } = extractWWWAuthenticateParams(refused);
    const resource = await processResourceDiscoveryResponse(this.url, await fetch(resourceMetadataUrl));
    return new URL(resource.authorization_servers[0]);
  }

  /** Register; `algorithm` says in which of its two documents the server is looked up. */
  async register(refused, algorithm = "oauth2") {
    this.config = await openid.dynamicClientRegistration(
      await this.issuer(refused),
      {
        client_name: setting.client_name,
        redirect_uris: [setting.redirect_uri],
        grant_types: ["authorization_code", "refresh_token", DEVICE],
        token_endpoint_auth_method: "client_secret_basic",
      },
      openid.ClientSecretBasic(),
      { algorithm },
    );
    this.memory.client = this.config.clientMetadata();
  }

  /** Ask the person; returns where their browser ended up, and what has to be true of it. */
  async asked() {
    const pkceCodeVerifier = openid.randomPKCECodeVerifier();
    const expectedState = openid.randomState();
    const url = openid.buildAuthorizationUrl(this.config, {
      redirect_uri: setting.redirect_uri,
      resource: this.url.href,
      scope: "mcp",
      state: expectedState,
      code_challenge: await openid.calculatePKCECodeChallenge(pkceCodeVerifier),
      code_challenge_method: "S256",
    });
    return [await authorized(url.href), { pkceCodeVerifier, expectedState, idTokenExpected: false }];
  }

  redeem(callback, checks) {
    return openid.authorizationCodeGrant(this.config, callback, checks, { resource: this.url.href });
  }

  async refresh() {
    this.memory.tokens = await openid.refreshTokenGrant(this.config, this.memory.tokens.refresh_token);
  }

  async connect(mode) {
    const { memory } = this;
    const client = new Client({ name: setting.client_name, version: "1" }, mode && { versionNegotiation: { mode } });
    const authProvider = {
      token: async () => memory.tokens?.access_token,
      onUnauthorized: async ({ response }) => {
        if (memory.tokens) return this.refresh();
        await this.register(response);
        memory.tokens = await this.redeem(...(await this.asked()));
      },
    };
    await client.connect(new StreamableHTTPClientTransport(this.url, { authProvider }));
    return client;
  }

  async obey(order) {
    switch (order.do) {
      case "documents": {
        const found = {};
        for (const algorithm of ["oauth2", "oidc"]) {
          await this.register(undefined, algorithm);
          found[algorithm] = this.config.serverMetadata();
        }
        return found;
      }
      case "other-issuer": {
        await this.register();
        const [callback, checks] = await this.asked();
        const genuine = callback.href;
        const refused = [];
        for (const iss of ["https://auth.example.com", null]) {
          if (iss) callback.searchParams.set("iss", iss);
          else callback.searchParams.delete("iss");
          refused.push(await this.redeem(callback, checks).then(() => "taken", (error) => error.cause?.message));
        }
        this.memory.tokens = await this.redeem(new URL(genuine), checks);
        return refused;
      }
      case "device":
        await this.register();
        this.device = await openid.initiateDeviceAuthorization(this.config, { resource: this.url.href });
        return this.device;
      case "poll":
        this.memory.tokens = await openid.pollDeviceAuthorizationGrant(this.config, this.device);
        return null;
      case "machine": {
        const proof = openid.ClientSecretBasic(order.client_secret);
        const options = { algorithm: "oauth2" };
        this.config = await openid.discovery(await this.issuer(), order.client_id, undefined, proof, options);
        this.memory.client = this.config.clientMetadata();
        this.memory.tokens = await openid.clientCredentialsGrant(this.config, { resource: this.url.href });
        return null;
      }
      case "refresh":
        await this.refresh();
        return null;
      case "introspect":
        return openid.tokenIntrospection(this.config, this.memory.tokens[order.token]);
      case "revoke":
        await openid.tokenRevocation(this.config, this.memory.tokens[order.token]);
        return null;
      default:
        return super.obey(order);
    }
  }
}

await serve(RelyingParty);
