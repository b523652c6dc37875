// Owns: the devices that tests run on. A device that is not there (not built, no such hardware) is skipped by name, loudly:
// the skipped test says which device and why.
import { describe } from "vitest";
import type { Device } from "../../src/device/device.js";
import { DeviceGroup } from "../../src/device/group.js";
import { ReferenceDevice } from "../../src/device/reference/device.js";

export interface TestDevice {
  readonly name: string;
  /** Throws, with the reason, where the device is not there. */
  open(): Promise<Device>;
}

export const testDevices: readonly TestDevice[] = [
  { name: "reference", open: async () => new ReferenceDevice() },
  { name: "reference, two ranks", open: async () => new DeviceGroup(2) },
];

/** describe() once a device; `suite` gets an opened device, closed by the process's end. */
export async function describeDevices(
  title: string,
  suite: (device: Device, name: string) => void,
  devices: readonly TestDevice[] = testDevices,
): Promise<void> {
  for (const { name, open } of devices) {
    try {
      const device = await open();
      describe(`${title} on ${name}`, () => suite(device, name));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      console.warn(`SKIPPED: ${title} on ${name}: ${why}`);
      describe.skip(`${title} on ${name} (not there: ${why})`, () => suite(undefined as never, name));
    }
  }
}
