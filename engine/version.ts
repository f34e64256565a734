/** The version of Tidemark. */
export const tidemarkVersion = "0.1.0";
