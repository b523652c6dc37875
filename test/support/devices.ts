// Owns: the devices that tests run on. A device that is not there (not built, no such hardware) is skipped by name, loudly:
// the skipped test says which device and why.
import { describe, test } from "vitest";
import type { StorageType } from "../../src/base/dtype.js";
import { CpuDevice } from "../../src/device/cpu/device.js";
import { CudaDevice } from "../../src/device/cuda/device.js";
import type { Device } from "../../src/device/device.js";
import { DeviceGroup } from "../../src/device/group.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";
import type { Arithmetic } from "./bounds.js";

export interface TestDevice {
  readonly name: string;
  /** What linears with weights of this type compute in: decides how near the reference they must be. */
  readonly arithmetic: (type: StorageType) => Arithmetic;
  /** How far what is kept between ops is off, of its rms: 0 where it is f32. */
  readonly kept?: number;
  /** Takes models, not single ops (a group of ranks divides heads and columns). */
  readonly wholePlansOnly?: boolean;
  /** Throws, with the reason, where the device is not there. */
  open(): Promise<Device>;
}

/** Quantised weights meet tokens rounded to 8 bits; the others are widened and multiplied in f32. */
const cpuArithmetic = (type: StorageType): Arithmetic => (type.startsWith("Q") ? "q8" : "f32");

export const testDevices: readonly TestDevice[] = [
  { name: "reference", arithmetic: () => "f32", open: async () => new ReferenceDevice() },
  { name: "reference, two ranks", arithmetic: () => "f32", wholePlansOnly: true, open: async () => new DeviceGroup(2) },
  { name: "cpu", arithmetic: cpuArithmetic, open: async () => new CpuDevice() },
  // Activations are bf16: half a unit in the last place of values up to eight times their rms, rounded up to three times (what
  // goes in, what is kept on the way, what comes out).
  { name: "cuda", arithmetic: () => "bf16", kept: Math.sqrt(3) * 8 * 2 ** -9, open: async () => new CudaDevice() },
];

/** describe() once a device; `suite` gets an opened device, closed by the process's end. */
export async function describeDevices(
  title: string,
  suite: (device: Device, arithmetic: TestDevice["arithmetic"], kept: number) => void,
  devices: readonly TestDevice[] = testDevices,
): Promise<void> {
  for (const { name, open, arithmetic, kept } of devices) {
    try {
      const device = await open();
      describe(`${title} on ${name}`, () => suite(device, arithmetic, kept ?? 0));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      console.warn(`SKIPPED: ${title} on ${name}: ${why}`);
      test.skip(`${title} on ${name} (not there: ${why})`, () => {});
    }
  }
}
