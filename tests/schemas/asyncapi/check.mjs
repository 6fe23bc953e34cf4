// The official parser's opinion of the AsyncAPI document in the first argument, as JSON.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
const messages = document ? document.allMessages().map((each) => each.name()) : null;
console.log(JSON.stringify({ messages, diagnostics: diagnostics.map((each) => `${each.path.join("/")}: ${each.message}`) }));
