// Owns: the engine in a child process: what the server uses. A crash in native code or a kill ends that process alone;
// the child ends when this process does.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Port } from "../engine/protocol.js";

/** onStart gets the process id: what an operator, or a test, would kill. */
export function processCarrier(onStart?: (pid: number) => void): Port {
  const child = fork(fileURLToPath(new URL("./entry.js", import.meta.url)), [], {
    serialization: "advanced",
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    execArgv: [],
  });
  if (child.pid !== undefined) onStart?.(child.pid);
  return {
    // A child that is going away says so by its exit; what can no longer be sent is lost with it.
    post: (message) => {
      if (child.connected) child.send(message as object, () => {});
    },
    onMessage: (listener) => child.on("message", listener),
    // The channel may still hold messages when the exit is known: both have to have ended.
    onClose: (listener) => {
      let reason: string | undefined;
      const tell = () => {
        if (reason !== undefined && !child.connected) listener(reason);
      };
      child.once("disconnect", tell);
      // Also said of a message or a signal that could not be sent: then the exit follows.
      child.on("error", (error) => {
        if (child.pid === undefined) listener(`its process could not be started: ${error.message}`);
      });
      child.once("exit", (code, signal) => {
        reason = signal ? `its process was killed by ${signal}` : `its process ended with code ${code}`;
        tell();
      });
    },
    close: () => void child.kill("SIGKILL"),
  };
}
