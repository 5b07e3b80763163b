// The driver's version, which WebGPU does not say.

import { assertEquals, assertMatch } from "@std/assert";
import { device } from "../../src/gpu/device.ts";
import { driverOf } from "../../src/gpu/driver.ts";
import { testDevice } from "../helpers/check.ts";

const onLinux = Deno.build.os === "linux";
await testDevice("cpu");
const { facts, provider } = device(), isLlvmpipe = /llvmpipe/.test(facts.description);

Deno.test({
  name: "an unknown adapter has no driver",
  ignore: !onLinux,
  fn: () => assertEquals(driverOf({ description: "no such adapter" }), undefined),
});

Deno.test({
  name: "the driver of an adapter is told by name and version, whatever implementation of WebGPU names it",
  ignore: !onLinux || !isLlvmpipe,
  fn() {
    const [, llvm] = /LLVM ([\d.]+)/.exec(facts.description) ?? [];
    const driver = driverOf(facts, provider) as string;
    assertMatch(driver, /^llvmpipe, Mesa \d+\.\d+\.\d+/);
    assertEquals(driver.includes(`LLVM ${llvm}`), true, driver);
    assertEquals(driverOf(facts, provider), driver, "asked again");
    const description = facts.description.replace(/ through Dawn$/, "");
    for (const suffix of ["", " through Dawn"]) {
      assertEquals(driverOf({ description: description + suffix }, { suffix }), driver, suffix);
    }
  },
});
