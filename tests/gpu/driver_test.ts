// The driver's version, which WebGPU does not say.

import { assertEquals, assertMatch } from "@std/assert";
import { device } from "../../src/gpu/device.ts";
import { driverOf } from "../../src/gpu/driver.ts";
import { testDevice } from "../helpers/check.ts";

Deno.test({
  name: "the driver of an adapter is told by name and version, and an unknown adapter has none",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await testDevice("cpu");
    const { facts } = device();
    assertEquals(driverOf({ description: "no such adapter" }), undefined);
    if (!/llvmpipe/.test(facts.description)) return;
    const [, llvm] = /LLVM ([\d.]+)/.exec(facts.description) ?? [];
    const driver = driverOf(facts) as string;
    assertMatch(driver, /^llvmpipe, Mesa \d+\.\d+\.\d+/);
    assertEquals(driver.includes(`LLVM ${llvm}`), true, driver);
    assertEquals(driverOf(facts), driver, "asked again");
  },
});
