/**
 * The version of Tidemark. Every document that it writes names it, so that the points of a faulty
 * version can be found later.
 */
export const tidemarkVersion = "0.1.0";
