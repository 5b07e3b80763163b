// The pickle reader: every protocol of Python is read; hostile and damaged pickles end in one line, and nothing is executed,
// grows without bound or hangs.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import { Callable, Dict, Instance, Sequence, unpickle, type Value } from "../../src/formats/pickle.ts";
import { TorchNames } from "../../src/formats/torch_names.ts";
import {
  bytes,
  call,
  dict,
  global,
  guarded,
  int,
  little,
  type Part,
  pickle,
  text,
  tuple,
} from "../helpers/pickles.ts";

const read = (content: Uint8Array) => unpickle(guarded(content), 0, new TorchNames("memory")).value;

/** A value in JavaScript's own: dicts as lists of pairs, bytes by their number, as protocol 2 has no bytes. */
function plain(value: Value): unknown {
  if (value instanceof Sequence) return value.items.map(plain);
  if (value instanceof Dict) {
    const items = value.items.map(plain);
    return { dict: items.flatMap((item, i) => i % 2 ? [] : [[item, items[i + 1]]]) };
  }
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (value instanceof Callable) return value.name;
  return value instanceof Instance
    ? value.state === null ? value.name : [value.name, plain(value.state)]
    : value;
}

Deno.test("unpickle() reads the same value from every pickle protocol", () => {
  const { protocols } = JSON.parse(
    Deno.readTextFileSync(new URL("../fixtures/pickles.json", import.meta.url)),
  ) as { protocols: string[] };
  assertEquals(protocols.length, 6);
  const numbers = [1, -1, 255, 256, 65535, 65536, -(2 ** 31), 2 ** 31, 2n ** 53n, -(2n ** 63n), 2n ** 200n];
  for (const protocol of protocols) {
    assertEquals(plain(read(Uint8Array.fromBase64(protocol))), {
      dict: [
        ["a", [...numbers, 0.1, -1e300, Infinity]],
        ["text", ["", "é€😀", "line\nquote'\"\\ \x00", "x".repeat(300)]],
        ["bytes", ["0 bytes", "2 bytes", "300 bytes"]],
        ["tuples", [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]],
        ["set", [[1], [2]]],
        ["none", [null, true, false]],
        ["dict", { dict: [["k", { dict: [] }], [5, []]] }],
        ["space", ["argparse.Namespace", { dict: [["x", 1]] }]],
        ["shared", [["s"], ["s"]]],
      ],
    });
  }
});

Deno.test("unpickle() reads opcodes of older Pythons and other writers", () => {
  const cases: [Part, unknown][] = [
    [["U", 3, "abc"], "abc"],
    [["T", little(3, 4), "abc"], "abc"],
    ["S'it\\'s\\x21'\n", "it's!"],
    ["V\\u20ac\\U0001f600\n", "€😀"],
    ["I01\n", true],
    ["L-5L\n", -5],
    ["F1.5\n", 1.5],
    [["\x8b", little(2, 4), 0, 255], -256],
    [["\x8d", little(2, 8), "ab"], "ab"],
    [["\x8e", little(2, 8), "ab"], "2 bytes"],
    [["\x96", little(2, 8), "ab"], "2 bytes"],
    [["(", int(1), int(2), "d"], { dict: [[1, 2]] }],
    [["(", int(1), int(2), "l"], [1, 2]],
    [["]", int(1), "a", int(2), "a"], [1, 2]],
    [["\x8f(", int(1), "\x90"], [1]],
    [[int(1), "2", "\x86"], [1, 1]],
    [[int(1), "0", int(2)], 2],
    [[int(1), "(", int(2), "1"], 1],
    [[int(1), "(0"], 1],
    [[int(1), "p7\n", "0", "g7\n"], 1],
    [[int(1), "r", little(70_000, 4), "0", "j", little(70_000, 4)], 1],
    [["(iargparse\nNamespace\n"], "argparse.Namespace"],
    [["(", global("argparse.Namespace"), "o"], "argparse.Namespace"],
    [[text("torch"), text("float16"), "\x93"], "torch.float16"],
    [
      global("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
      "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    ],
    [call("collections.OrderedDict", tuple(tuple(text("a"), int(1)), tuple(text("b"), int(2)))), {
      dict: [["a", 1], ["b", 2]],
    }],
  ];
  for (const [parts, value] of cases) assertEquals(plain(read(pickle(parts))), value);
});

Deno.test("unpickle() returns the end of a pickle at any offset, also beyond its window of bytes", () => {
  const first = pickle(text("a".repeat(100_000))),
    second = pickle("(", new Uint8Array(70_000).fill(0x4e), "t");
  const source = guarded(bytes("??", first, second, "??"));
  const { value, end } = unpickle(source, 2, { resolve: () => undefined });
  assertEquals([(value as string).length, end], [100_000, 2 + first.length]);
  const next = unpickle(source, end, { resolve: () => undefined });
  assertEquals([(next.value as Sequence).items.length, next.end], [70_000, source.size - 2]);
});

Deno.test("keys named like members of Object.prototype are plain keys", () => {
  const value = read(pickle(dict({ ["__proto__"]: dict({ polluted: int(1) }), constructor: int(2) })));
  assertEquals(plain(value), { dict: [["__proto__", { dict: [["polluted", 1]] }], ["constructor", 2]] });
  assertEquals(({} as Record<string, unknown>)["polluted"], undefined);
});

/** Every way to call something by name, with the name that is refused. */
const NAMES: [string, Part, string][] = [
  ["os.system by REDUCE", call("posix.system", text("id")), "posix.system"],
  ["builtins.eval", call("builtins.eval", text("1")), "builtins.eval"],
  ["Python 2's eval", call("__builtin__.eval", text("1")), "__builtin__.eval"],
  ["__import__", call("builtins.__import__", text("os")), "builtins.__import__"],
  ["INST", "(S'id'\nios\nsystem\n", "os.system"],
  ["OBJ", ["(", global("subprocess.Popen"), text("id"), "o"], "subprocess.Popen"],
  ["NEWOBJ", [global("subprocess.Popen"), ")\x81"], "subprocess.Popen"],
  ["NEWOBJ_EX", [global("subprocess.Popen"), ")}", "\x92"], "subprocess.Popen"],
  ["another torch function", call("torch.load", text("other.pth")), "torch.load"],
  ["torch.hub", call("torch.hub.load", text("a/b")), "torch.hub.load"],
  ["a name across lines", [text("os\n"), text("system"), "\x93"], "os\\n.system"],
];
for (const [what, parts, name] of NAMES) {
  Deno.test(`unpickle() refuses ${what} by name`, () => {
    const { message } = assertThrows(
      () => read(pickle(parts)),
      UsageError,
      `asks for "${name}"`,
    ) as UsageError;
    assert(
      message.startsWith('Cannot read "memory": its pickle ') && message.includes("nothing of it was run"),
    );
    assert(!message.includes("\n"), message);
  });
}

/** Names that no weights need and that are no commands either: objects that are known by their names. */
const CARRIED: [string, Part, unknown][] = [
  [
    "a nested getattr",
    call("builtins.getattr", call("builtins.getattr", global("builtins.str"), text("x"))),
    "builtins.getattr",
  ],
  [
    "a name with dots by STACK_GLOBAL",
    [text("collections"), text("OrderedDict.__init__.__globals__"), "\x93)R"],
    "collections.OrderedDict.__init__.__globals__",
  ],
  ["NEWOBJ", [global("torch.nn.Module"), ")\x81"], "torch.nn.Module"],
  ["NEWOBJ_EX", [global("a.B"), ")}", "\x92"], "a.B"],
  ["a module with a state", [global("torch.nn.Linear"), ")\x81}b"], ["torch.nn.Linear", { dict: [] }]],
  ["a name from the prototype", [global("constructor.constructor"), ")R"], "constructor.constructor"],
  ["a name of another package in disguise", [global("argparse.Namespace.x"), ")R"], "argparse.Namespace.x"],
  ["the result of a call, called", [global("a.f"), ")R)R"], "a.f"],
  ["a type, called", call("builtins.int", int(1)), "builtins.int"],
  ["a list of a class", [global("a.List"), ")\x81", int(1), "a(", int(2), "e"], "a.List"],
  [
    "a dict of a class",
    [global("a.Dict"), ")\x81", text("k"), int(1), "s(", text("l"), int(2), "u"],
    "a.Dict",
  ],
];
for (const [what, parts, value] of CARRIED) {
  Deno.test(`unpickle() creates an object with a class name, and calls nothing, for ${what}`, () => {
    assertEquals(plain(read(pickle(parts))), value);
  });
}

const WRONG: [string, Part, string][] = [
  ["nothing at all", [], "takes from an empty stack"],
  ["protocol 6", [0x80, 6], "is of protocol 6"],
  ["text longer than the file", ["X", little(0xffffffff, 4), "abc"], "is cut off"],
  ["text of 2^63 bytes", ["\x8d", little(1n << 63n, 8), "abc"], "is cut off"],
  ["bytes of a length that is negative in 32 bits", ["B", little(0xfffffffb, 4)], "is cut off"],
  ["bytes of 2^64 - 1", ["\x8e", little((1n << 64n) - 1n, 8)], "is cut off"],
  ["an integer of 4 GB", ["\x8b", little(0xffffffff, 4)], "has an integer of 4294967295 bytes"],
  ["text that is not UTF-8", ["X", little(1, 4), 0xff], "has text that is not UTF-8"],
  ["a line without an end", "Vabc", "is cut off"],
  ["an endless line", ["V", "x".repeat(70_000), "\n"], "has a line of more than 65536 characters"],
  ["an integer in words", "Iseven\n", "has an invalid integer"],
  ["a number in words", "Fhalf\n", "has an invalid number"],
  ["a memo that was never made", "h\x05", "asks for the memo 5"],
  ["a memo in words", "Npx\n", "has a memo index that is not a number"],
  ["an unknown operation", "\xff", "has the operation 0xff"],
  ["an extension code", ["\x82", 1], "has the operation 0x82"],
  ["a persistent name", "Pname\n", "has the operation 0x50"],
  ["an out-of-band buffer", "\x97", "has the operation 0x97"],
  ["a tuple without a mark", "Nt", "misses a mark"],
  ["a tuple of what is not there", "\x86", "takes from an empty stack"],
  ["values from before a mark", ["N(", "\x85"], "takes from an empty stack"],
  ["a key without a value", ["}(", int(1), "u"], "has a key without a value"],
  ["items of a list", ["](", int(1), int(2), "u"], "sets items of a value that is not a dict"],
  ["appending to a dict", ["}", int(1), "a"], "appends to a value that is not a list"],
  ["appending to a tuple", [")", int(1), "a"], "appends to a value that is not a list"],
  ["calling text", [text("print"), ")R"], "calls what cannot be called"],
  ["calling without arguments", [global("collections.OrderedDict"), "NR"], "calls without arguments"],
  ["state of a function", [global("collections.OrderedDict"), "}b"], "changes what has no state"],
  ["a dict of what is none", call("collections.OrderedDict", int(1)), "makes a dict of something else"],
  ["a set of what is none", call("builtins.set", int(1)), "makes a list of something else"],
  ["an object of no class", call("copyreg._reconstructor", int(1)), "makes an object of no class"],
  ["names that are numbers", [int(1), int(2), "\x93"], "has a name that is not a text"],
  ["five million operations", new Uint8Array(5_000_000).fill(0x4e), "has more than 4194304 operations"],
];
for (const [what, parts, reason] of WRONG) {
  Deno.test(`unpickle() refuses ${what}`, () => {
    const { message } = assertThrows(() => read(pickle(parts)), UsageError, reason) as UsageError;
    assert(!message.includes("\n"), message);
  });
}

Deno.test("a pickle truncated at any byte is refused", () => {
  const whole = pickle(
    dict({ a: tuple(int(1), text("é")), b: call("collections.OrderedDict") }),
    "p3\n",
    "g3\n",
  );
  read(whole);
  for (let n = 0; n < whole.length; n++) {
    assertThrows(() => read(whole.slice(0, n)), UsageError, "is cut off");
  }
});

Deno.test("lists that contain themselves, and a million nested tuples, are read without recursion", () => {
  const self = read(pickle("]q\x00h\x00a")) as Sequence;
  assertEquals(self.items[0], self);
  let depth = 0;
  let value = read(pickle("N", new Uint8Array(1_000_000).fill(0x85)));
  for (; value instanceof Sequence; depth++) value = value.items[0] as Value;
  assertEquals(depth, 1_000_000);
});

Deno.test("one list in a hundred thousand dicts is copied a bounded number of times", () => {
  const pair = tuple(int(1), int(2));
  const pairs: Part[] = ["](", ...Array(200).fill(pair), "e", "q\x00"];
  const once = bytes(global("collections.OrderedDict"), "h\x00\x85R0");
  const made: Part[] = Array(30_000).fill(once);
  assertThrows(() => read(pickle(pairs, made)), UsageError, "has more than 4194304 pairs");
});
