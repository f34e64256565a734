/**
 * The assertions about sinks that tests of every room share. They are part of the conformance suite
 * that ships.
 */
export { expectCode, namesIn, textOf, utf8 } from "../../sink/testing/expectations.ts";
