/** The table of docs/clients.md. */

import { readFileSync, writeFileSync } from 'node:fs';

const PAGE = new URL('../../../docs/clients.md', import.meta.url);
const [BEGIN, END] = ['<!-- begin of the results -->\n', '<!-- end of the results -->\n'];

/** Returns the table. `rows` are lists of cells, the first one is the head. */
function markdown(rows) {
  const line = (cells) => `| ${cells.join(' | ')} |\n`;
  const [head, ...body] = rows;
  return [head, head.map(() => '---'), ...body].map(line).join('');
}

function split() {
  const page = readFileSync(PAGE, 'utf8');
  const [before, rest] = page.split(BEGIN);
  const [results, after] = rest.split(END);
  return { before, results, after };
}

/** Returns the results that the page has, without the date. */
export const documented = () => split().results.replace(/^.*\n\n/, '');

/** Returns the results as the page has them. `tables` are lists of rows. */
export const results = (...tables) => tables.map(markdown).join('\n');

/** Writes the results and the date into the page. */
export function write(text) {
  const { before, after } = split();
  const date = new Date().toISOString().slice(0, 10);
  writeFileSync(PAGE, `${before}${BEGIN}Results of ${date}.\n\n${text}${END}${after}`);
}
