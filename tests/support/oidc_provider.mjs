// oidc-provider on a loopback port: node oidc_provider.mjs PACKAGES PORT TOKEN_SECONDS CLIENTS
// It keeps all in memory. /-/… is how the tests' helper reaches behind it.
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const [packages, port, seconds, clients] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(`${packages}/node_modules/oidc-provider/lib/index.js`));
const SCOPES = 'openid offline_access read write';
const stored = new Map();

class Adapter { // the one that comes with it forgets after a thousand entries
  constructor(model) { this.model = model; }
  key(id) { return `${this.model}:${id}`; }
  async upsert(id, payload) { stored.set(this.key(id), payload); }
  async find(id) { return stored.get(this.key(id)); }
  async findByUid(uid) { return undefined; }
  async findByUserCode(code) { return undefined; }
  async consume(id) { stored.get(this.key(id)).consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { stored.delete(this.key(id)); }
  async revokeByGrantId(grantId) {
    for (const [key, payload] of stored) {
      if (payload.grantId === grantId) stored.delete(key);
    }
  }
}

const provider = new Provider(`http://127.0.0.1:${port}`, {
  adapter: Adapter,
  clients: JSON.parse(clients),
  scopes: SCOPES.split(' '),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
  },
  ttl: {
    AccessToken: Number(seconds), ClientCredentials: Number(seconds),
    Grant: 86400, RefreshToken: 86400,
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
});

let exchanges = 0;
provider.on('grant.success', (ctx) => {
  if (ctx.oidc.params.grant_type === 'refresh_token') exchanges += 1;
});

const behind = {
  exchanges: () => exchanges,
  async grant({ client_id }) {
    const client = await provider.Client.find(client_id);
    const grant = new provider.Grant({ accountId: 'somebody', clientId: client_id });
    grant.addOIDCScope(SCOPES);
    const grantId = await grant.save();
    return new provider.RefreshToken({
      accountId: 'somebody', client, grantId, gty: 'authorization_code', scope: SCOPES,
    }).save();
  },
  async expire({ token }) { // this one alone, which its own revocation endpoint does not offer
    const found = await provider.AccessToken.find(token)
      ?? await provider.ClientCredentials.find(token);
    await found?.destroy();
  },
  async end({ token }) {
    const { grantId } = await provider.RefreshToken.find(token, { ignoreExpiration: true });
    await provider.RefreshToken.revokeByGrantId(grantId);
    await provider.Grant.adapter.destroy(grantId);
  },
};

const serve = provider.callback();
createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://127.0.0.1');
  if (!pathname.startsWith('/-/')) return serve(request, response);
  const answer = await behind[pathname.slice(3)](Object.fromEntries(searchParams));
  return response.end(JSON.stringify(answer ?? null));
}).listen(Number(port), '127.0.0.1');
