/** The version of Tidemark: stands in every document that it writes, so that points of a faulty version can be told apart later. */
export const tidemarkVersion = "0.1.0";
