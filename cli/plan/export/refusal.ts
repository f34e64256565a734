/** What a rule of the hand-over answers where it has no answer: the fact, and what to do. */

export interface Refusal {
  readonly what: string;
  readonly remedy: string;
}

export function refusal(what: string, remedy: string): Refusal {
  return { what, remedy };
}

export function isRefusal(answer: unknown): answer is Refusal {
  return typeof answer === "object" && answer !== null && "what" in answer && "remedy" in answer;
}
