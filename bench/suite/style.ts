/** Style of the page of a suite. */
export const pageStyle: string = `
:root{--back:#fff;--card:#f6f7f9;--text:#16181d;--soft:#5b6270;--line:#dfe2e8;--yes:#12703f;--no:#b3261e;
--s0:#2463c4;--s1:#c2570c;--s2:#1c7f5f;--s3:#8a3fb0;--s4:#a8801a;--s5:#b8336f;--yard:#9aa1ad}
@media (prefers-color-scheme:dark){:root{--back:#14161a;--card:#1c1f25;--text:#e8eaee;--soft:#a2a9b6;--line:#333843;
--yes:#5fd08f;--no:#ff8a80;--s0:#6ea4f7;--s1:#f2994a;--s2:#4fc79b;--s3:#c78be6;--s4:#e3bd4d;--s5:#f07fb0;--yard:#6f7683}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:0 0 10px}h2 small{font-weight:400;font-size:13px;color:var(--soft)}
section{margin-top:32px;padding-top:20px;border-top:1px solid var(--line)}
a{color:var(--s0)}
.verdict{font-size:18px;font-weight:600;margin:4px 0 8px}.yes{color:var(--yes)}.no{color:var(--no)}
.note{color:var(--soft);margin:6px 0;max-width:80ch}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:12px 0 0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:500}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:14px;margin:14px 0}
figure{margin:0;background:var(--card);border-radius:8px;padding:12px 14px}
figcaption{font-size:13px;color:var(--soft);margin-bottom:8px}
svg{display:block;width:100%;max-width:460px;height:auto;overflow:visible}
svg text{font:10.5px system-ui,sans-serif;fill:var(--text)}
.grid{stroke:var(--line);fill:none}.axis{stroke:var(--text);stroke-width:1.4;fill:none}
.dot{fill:var(--back);stroke:var(--text);stroke-width:.8}
.yardstick{fill:var(--yard)}
${["s0", "s1", "s2", "s3", "s4", "s5"].map((name) => `.${name}{fill:var(--${name})}.line.${name}{fill:none;stroke:var(--${name});stroke-width:1.5}`).join("")}
summary{cursor:pointer;color:var(--soft)}
@media print{body{font-size:11px}section,figure{break-inside:avoid}.plots{grid-template-columns:1fr 1fr}
.wide{overflow:visible}th,td{white-space:normal}}
`;
