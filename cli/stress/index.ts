/** What `tidemark stress` loads on demand. */
export { stressPage } from "./page.ts";
export { progressText, reportText, storeText } from "./report.ts";
export { faultKinds, parseFaults } from "./schedule.ts";
export { impossibleFaults } from "./store.ts";
export { checkStore, openScratch } from "./store-check.ts";
export { runStress } from "./stress.ts";
