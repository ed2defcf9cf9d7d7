// A certified OpenID provider, with development pages to sign in. Its setting is one line of JSON on standard input;
// it says "ready" on standard output, and ends with its input.
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import Provider from "oidc-provider";

const lines = createInterface({ input: process.stdin });
const setting = JSON.parse((await lines[Symbol.asyncIterator]().next()).value);
process.stdin.on("end", () => process.exit(0)).resume();

const provider = new Provider(setting.issuer, {
  clients: [setting.client],
  claims: { openid: ["sub", "groups"], email: ["email", "email_verified"], profile: ["name"] },
  findAccount: (_, sub) => ({ accountId: sub, claims: () => ({ sub, ...setting.people[sub] }) }),
  features: { backchannelLogout: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  pkce: { required: () => true },
  cookies: { keys: ["not a secret: nobody is here but a test"] },
});
const { hostname, port } = new URL(setting.issuer);
createServer({ key: setting.key, cert: setting.certificate }, provider.callback()).listen(port, hostname, () => {
  console.log("ready");
});
