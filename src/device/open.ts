// Owns: choosing a device by name. Backends are loaded only when they are asked for, so that none costs the others anything.
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { Device } from "./device.js";

export const deviceNames = ["auto", "cpu", "cuda", "reference"] as const;

/** "cuda:1" is the second GPU. */
export function isDeviceName(name: string): boolean {
  return (deviceNames as readonly string[]).includes(name) || /^cuda:\d{1,3}$/.test(name);
}

/** "auto": the CPU kernels where they are there, else the reference device. Throws UserError for what is not there. */
export async function openDevice(name = "auto"): Promise<Device> {
  switch (name) {
    case "cpu":
      return openCpu();
    case "reference":
      return openReference();
    case "auto":
      try {
        return await openCpu();
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        log.warn(`${error.message}; the reference device is used, which is slow`);
        return openReference();
      }
    default:
      if (isDeviceName(name)) return openCuda(Number(name.split(":")[1] ?? 0));
      throw new UserError(`there is no device ${name}; devices are ${deviceNames.join(", ")}`, {
        code: "unknown_device",
        param: "device",
      });
  }
}

async function openCpu(): Promise<Device> {
  const { CpuDevice } = await import("./cpu/device.js");
  return new CpuDevice();
}

async function openCuda(ordinal: number): Promise<Device> {
  const { CudaDevice } = await import("./cuda/device.js");
  return new CudaDevice(ordinal);
}

async function openReference(): Promise<Device> {
  const { ReferenceDevice } = await import("./reference/device.js");
  return new ReferenceDevice();
}
