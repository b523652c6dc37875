// Owns: which hosts callers can make this server talk to. Callers on this machine could ask any host themselves; those that
// have come with a key, from wherever, name only packages of the catalogue, of the Hugging Face hub, of Ollama's registry,
// and of the hosts that the server was started with. Nothing else in a request is ever fetched.
import { UserError } from "../base/errors.js";
import { defaultRegistry, parsePackageName } from "../store/names.js";

/** Hosts (with a port where it is not the scheme's); "*": any; null: the callers are on this machine. */
export type PullHosts = readonly string[] | null;

/** Throws UserError for a model's name that leads elsewhere. */
export function checkOutbound(name: string, hosts: PullHosts): void {
  if (hosts === null || hosts.includes("*")) return;
  const parsed = parsePackageName(name);
  if (parsed === null || parsed.kind === "catalogue" || parsed.kind === "hub") return;
  const host = parsed.kind === "url" ? new URL(parsed.url).host : parsed.id.registry;
  if (host === defaultRegistry || hosts.includes(host)) return;
  throw new UserError(
    `This server does not talk to ${host} for its callers. Start it with --pull-host ${host} to allow it.`,
    { status: 403, code: "host_not_allowed", param: "model" },
  );
}
